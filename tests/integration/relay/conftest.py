"""A relay in this process, agents' pushers against it, and clients as Hubble's are: gRPC on the wire, nothing faked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.agent.events.buffer import SendBuffer
from services.agent.events.push import RelayPusher
from services.common.authority import issue, make_authority
from services.common.pb.observer import observer_pb2_grpc
from services.common.runner import GrpcServer
from services.common.tls import TlsFiles, channel
from services.flows.dictionary import Dictionaries
from services.flows.entries import Decision, NodeRef, Party, PolicyRef, ServiceRef
from services.model.addresses import V4_MAPPED_PREFIX
from services.relay.app import serving
from services.relay.config import Config

MILLISECOND = 1_000_000
START = 1_700_000_000_000_000_000


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition, not for ever."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions on several objects
            await asyncio.sleep(0.005)


class Agent:
    """What an agent's pipeline does above the rings: rows into a buffer, a pusher that empties it."""

    def __init__(self, node: NodeRef, target: str, tls: TlsFiles | None, limit_bytes: int = 8 << 20) -> None:
        self.dictionaries = Dictionaries()
        self.buffer = SendBuffer(self.dictionaries, limit_bytes)
        self.emitted = 0
        self.pusher = RelayPusher(
            self.buffer, self.dictionaries, lambda: channel(target, tls, "relay"), node, "1.0", "10.0.0.9:4244"
        )

    def emit(self, rows: int, *, pod: str = "client", time_ns: int = START, **values: int) -> None:
        """A batch of rows, a millisecond apart, from one pod to `default/server`."""
        parties = self.dictionaries.parties
        source = parties.intern(
            Party(V4_MAPPED_PREFIX + b"\x0a\0\0\x01", 1001, ("k8s:app=" + pod,), "default", pod, cluster="default")
        )
        server = Party(V4_MAPPED_PREFIX + b"\x0a\0\0\x02", 1002, ("k8s:app=server",), "default", "server")
        policy = PolicyRef("CiliumNetworkPolicy", "default", "allow")
        columns: dict[str, Any] = {
            "time_ns": time_ns + np.arange(rows) * MILLISECOND,
            "source": source,
            "destination": parties.intern(server),
            "policy": self.dictionaries.decisions.intern(Decision(True, (policy,))),
            "service": self.dictionaries.services.intern(ServiceRef("default", "web")),
            "destination_port": 80,
            "source_port": self.emitted + np.arange(rows),
            "protocol": 6,
            "kind": 1,
            "verdict": 1,
            "direction": 1,
        } | values
        kinds = {"time_ns": np.int64, "source_port": np.uint16}
        self.buffer.add(
            {name: np.broadcast_to(value, rows).astype(kinds.get(name, np.uint32)) for name, value in columns.items()},
            time_ns,
        )
        self.emitted += rows
        self.pusher.wake()

    @contextlib.asynccontextmanager
    async def pushing(self) -> AsyncIterator[None]:
        """The pusher runs while the context is open."""
        task = asyncio.create_task(self.pusher.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@dataclass
class Place:
    """A relay's surroundings: its address stays over restarts."""

    directory: Path
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    @property
    def target(self) -> str:
        return f"unix://{self.directory}/relay.sock"

    def files(self, role: str, node: str = "") -> TlsFiles:
        """A certificate for a role."""
        make_authority(self.directory / "tls")
        return issue(self.directory / "tls", role, node)

    def relay(self, capacity: int = 65_536) -> contextlib.AbstractAsyncContextManager[GrpcServer]:
        """A relay, serving while the context is open."""
        files = self.files("relay")
        config = Config(
            listen=[self.target, "127.0.0.1:0"],
            node_name="relay-0",
            capacity=capacity,
            tls_ca=files.ca,
            tls_cert=files.cert,
            tls_key=files.key,
        )
        self.registry = CollectorRegistry()
        return serving(config, self.registry)

    def agent(self, node: str = "node1", **rest: Any) -> Agent:
        """An agent with the certificate of its node."""
        return Agent(
            NodeRef(node, labels=(f"kubernetes.io/hostname={node}",)), self.target, self.files("agent", node), **rest
        )

    def count(self, name: str) -> float:
        """The sum of a metric over its labels."""
        return sum(
            sample.value for metric in self.registry.collect() for sample in metric.samples if sample.name == name
        )

    @contextlib.asynccontextmanager
    async def client(self, role: str = "client") -> AsyncIterator[observer_pb2_grpc.ObserverStub]:
        """An Observer client."""
        async with self.channel(role) as there:
            yield observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]

    def channel(self, role: str = "client") -> grpc.aio.Channel:
        """A channel with the certificate of a role."""
        return channel(self.target, self.files(role), "relay")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Somewhere for a relay to be."""
    return Place(tmp_path)
