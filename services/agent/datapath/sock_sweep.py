"""UDP sockets whose backend is gone: they are closed, so that their owners look for another one.

    `sockets` map, entries of UDP -- backend no longer behind any Service --> network namespace -> SOCK_DESTROY

A connected UDP socket would go on sending to an address that nobody has, without ever hearing of it. TCP finds out by
itself, and unconnected sockets choose anew with every message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Set
from typing import Any, Protocol

import numpy as np

from services.agent.abi.sock import SOCK_ENTRY, SOCK_KEY
from services.agent.datapath.sock_diag import SocketDiagnosis
from services.common.errors import CiliateError, Invalid
from services.common.log import get_logger
from services.common.netns import inside, opened
from services.model.verdict import Protocol as IpProtocol

OWN = "/proc/self/ns/net"
Doomed = dict[int, dict[tuple[int, bytes], bytes]]
"""Cookie of a namespace -> (cookie of a socket, backend as 18 bytes) -> key in the map."""


class SocketMap(Protocol):
    """What is needed of the map; `maps.PinnedMap` has it."""

    def chunks(self, count: int = ...) -> Any:
        """Yields (keys, values, how many)."""
        ...

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Remove entries."""
        ...


def doomed_sockets(keys: bytes, values: bytes, live: Set[bytes]) -> Doomed:
    """Entries of UDP whose backend (address and port, network order, 18 bytes) is not `live`. Pure."""
    found: Doomed = {}
    key_rows, value_rows = np.frombuffer(keys, SOCK_KEY), np.frombuffer(values, SOCK_ENTRY)
    for i in np.flatnonzero(key_rows["protocol"] == IpProtocol.UDP):
        key, entry = key_rows[i], value_rows[i]
        backend = entry["backend"].tobytes() + entry["backend_port"].tobytes()
        if backend not in live:
            found.setdefault(int(entry["netns"]), {})[int(key["cookie"]), backend] = key.tobytes()
    return found


class SocketSweeper:
    """`live_backends`: everybody who is behind a Service in any state; `namespaces`: files of the pods' network
    namespaces. Looks after every `changed`, at most once per `interval_s`."""

    def __init__(
        self,
        sockets: SocketMap,
        live_backends: Callable[[], Set[bytes]],
        namespaces: Callable[[], Iterable[str]],
        interval_s: float = 1.0,
    ) -> None:
        self._map, self._live, self._namespaces, self._interval = sockets, live_backends, namespaces, interval_s
        self._changed = asyncio.Event()
        self._log = get_logger("sockets")
        self.closed_total = 0
        self.errors = 0

    def changed(self) -> None:
        """Services may have lost backends."""
        self._changed.set()

    async def run(self) -> None:
        """Sweep until cancelled. A failed sweep is counted and tried again after the next change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                closed = await self.sweep()
            except CiliateError as error:
                self.errors += 1
                self._log.warning("sockets of vanished backends stay open", error=str(error))
            else:
                if closed:
                    self._log.info("closed UDP sockets whose backend is gone", sockets=closed)
            await asyncio.sleep(self._interval)

    async def sweep(self) -> int:
        """One pass; how many sockets were closed. Raises CiliateError."""
        doomed: Doomed = {}
        live: Set[bytes] | None = None
        for keys, values, count in self._map.chunks():
            if count and (np.frombuffer(keys, SOCK_KEY)["protocol"] == IpProtocol.UDP).any():
                live = self._live() if live is None else live
                for netns, sockets in doomed_sockets(keys, values, live).items():
                    doomed.setdefault(netns, {}).update(sockets)
            await asyncio.sleep(0)
        closed = 0
        if doomed:
            for path in (OWN, *self._namespaces()):
                closed += self._close_in(path, doomed)
                await asyncio.sleep(0)
            self._map.delete_batch([key for sockets in doomed.values() for key in sockets.values()])
        self.closed_total += closed
        return closed

    @staticmethod
    def _close_in(path: str, doomed: Doomed) -> int:
        try:
            with opened(path) as descriptor, inside(descriptor):
                diagnosis = SocketDiagnosis()
        except Invalid:
            return 0  # a pod that has just ended
        with diagnosis:
            wanted = doomed.get(diagnosis.netns_cookie(), {})
            if not wanted:
                return 0
            # Only who is still connected to it: a socket may have been connected to somebody else since.
            found = [each for each in diagnosis.connected_udp() if (each.cookie, each.peer) in wanted]
            return sum(diagnosis.destroy(each) for each in found)
