"""Real sockets in many network namespaces from one process: hundreds of probes in the time of one.

A socket stays in the namespace that it was made in. So a thread enters each namespace only to make sockets, and one
event loop waits for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TCP, UDP = "TCP", "UDP"
_KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt: from a pod's namespace to an address and port. `key` is the caller's."""

    key: Any
    netns: Path
    address: str
    protocol: str
    port: int


def sockets_in(netns: Path, make: Callable[[], list[socket.socket]]) -> list[socket.socket]:
    """What `make` returns, made inside the namespace by a thread that ends there."""
    made: list[socket.socket] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            _enter(netns)
            made.extend(make())
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made


def _enter(netns: Path) -> None:
    """Move the calling thread there; it never comes back."""
    with netns.open("rb") as there:
        if _libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {netns}")


def _plain(protocol: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, _KINDS[protocol])
    made.setblocking(False)
    return made


def _listening(protocol: str, port: int) -> socket.socket:
    made = _plain(protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("0.0.0.0", port))
    if protocol == TCP:
        made.listen(1024)
    return made


class Servers:
    """Accepts and echoes on ports of namespaces, until closed."""

    def __init__(self) -> None:
        self._served: dict[tuple[Path, str, int], socket.socket] = {}

    def serve(self, netns: Path, ports: Iterable[tuple[str, int]]) -> None:
        """Listen on these (protocol, port) there, where nobody does yet."""
        fresh = sorted({p for p in ports if (netns, *p) not in self._served})
        loop = asyncio.get_running_loop()
        for wanted, made in zip(fresh, sockets_in(netns, lambda: [_listening(*each) for each in fresh]), strict=True):
            self._served[netns, *wanted] = made
            loop.add_reader(made, _accept if wanted[0] == TCP else _echo, made)

    def close(self) -> None:
        """Stop all of it."""
        for made in self._served.values():
            asyncio.get_running_loop().remove_reader(made)
            made.close()
        self._served.clear()


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


def _echo(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, peer = server.recvfrom(64)
            server.sendto(data, peer)


async def probe(wanted: Sequence[Probe], seconds: float) -> dict[Any, bool]:
    """Which of them get through within `seconds`: a TCP handshake, or a UDP datagram and its echo."""
    by_netns: dict[Path, list[Probe]] = {}
    for each in wanted:
        by_netns.setdefault(each.netns, []).append(each)
    pairs: list[tuple[Probe, socket.socket]] = []
    try:
        for netns, probes in by_netns.items():
            made = sockets_in(netns, lambda probes=probes: [_plain(each.protocol) for each in probes])  # type: ignore[misc]
            pairs += zip(probes, made, strict=True)
        results = await asyncio.gather(*(_passes(each, made, seconds) for each, made in pairs))
    finally:
        for _, made in pairs:
            made.close()
    return {each.key: result for (each, _), result in zip(pairs, results, strict=True)}


async def _passes(wanted: Probe, made: socket.socket, seconds: float) -> bool:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            await loop.sock_connect(made, (wanted.address, wanted.port))
            if wanted.protocol == UDP:
                token = os.urandom(8)
                await loop.sock_sendall(made, token)
                return await loop.sock_recv(made, 64) == token
            return True
    except (TimeoutError, OSError):
        return False
