"""What a Prometheus needs to scrape a sandbox: figures of every process on a loopback port, the file that names them.

An agent listens on loopback of its node, where nobody else is; the supervisor carries connections there.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from services.common import netns
from services.sandbox.state import NETNS_ROOT

AGENT_PORT = 9962
"""The field's port of agents' metrics; free on every node, because nodes have loopbacks of their own."""
INTERVAL = "2s"
CHUNK = 1 << 16
MAX_CONNECTIONS = 64


class Forwarder:
    """Loopback port -> port on loopback of a node, while it is open."""

    def __init__(self, namespace: str, port: int) -> None:
        self._namespace, self._port = namespace, port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        """Listens; returns host:port."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(writer)
        try:
            with netns.opened(str(NETNS_ROOT / self._namespace)) as descriptor, netns.inside(descriptor):
                there = socket.socket()
            there.setblocking(False)
            await asyncio.get_running_loop().sock_connect(there, ("127.0.0.1", self._port))
            far_reader, far_writer = await asyncio.open_connection(sock=there)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except OSError:
            pass  # the agent is away; Prometheus sees a closed connection and says so
        finally:
            self._connections.discard(writer)
            writer.close()

    def stop(self) -> None:
        """Close."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    finally:
        with contextlib.suppress(OSError):
            writer.close()


def free_address() -> str:
    """A port on loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def write_config(path: Path, jobs: Mapping[str, Iterable[tuple[str, Mapping[str, str]]]]) -> None:
    """A prometheus.yml: job -> (host:port, labels) of its targets."""
    scrapes: list[dict[str, Any]] = [
        {
            "job_name": job,
            "static_configs": [{"targets": [target], "labels": dict(labels)} for target, labels in targets],
        }
        for job, targets in jobs.items()
    ]
    document = {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL, "scrape_timeout": INTERVAL},
        "scrape_configs": scrapes,
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
