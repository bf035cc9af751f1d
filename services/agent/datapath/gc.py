"""Collection: entries of connection tables whose time is over are removed, in batches.

    map --batches--> numpy: expires_ns < now --batches--> removed --> close records --> `emit`
                                                     +--> room (who has how many)

The kernel ignores expired entries by itself (it starts anew on them), so collection is about memory and about the
flow records, never about correctness. A batch is removed right after it was read: should a packet have opened a new
connection on one of its tuples in that millisecond, its entry goes, too, and the next packet asks policy again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.agent.abi.conntrack import CT_ENTRY, CT_KEY, CtFlags, CtScope
from services.agent.datapath.closing import close_records
from services.agent.datapath.room import Room
from services.common.errors import CiliateError

Records = NDArray[Any]
Mask = NDArray[np.bool_]
CHUNK = 8192
"""Entries between two turns of the event loop (a few milliseconds)."""
PAUSES = ((0.5, 5.0), (0.75, 2.0), (1.0, 1.0))
"""(fill level up to which, seconds between sweeps)"""
SHARE = 10
"""A sweep may take this part of the time: of a core, a tenth."""


class Table(Protocol):
    """What is needed of a map; `maps.PinnedMap` has it."""

    max_entries: int

    def chunks(self, count: int = ...) -> Any:
        """Yields (keys, values, how many)."""
        ...

    def delete_packed(self, keys: bytes) -> int:
        """Remove keys that stand one behind the other; how many were there."""
        ...


@dataclass(slots=True)
class Sweep:
    """One pass over the map."""

    entries: int = 0
    removed: int = 0
    closed: int = 0
    """Close records emitted."""


class Collector:
    """Removes what is over from a map whose entries have `expires_ns`."""

    def __init__(self, table: Table, key: np.dtype[Any], entry: np.dtype[Any]) -> None:
        self._table, self._key, self._entry = table, key, entry
        self.entries = 0
        """How many there were after the last sweep."""
        self.removed_total = 0
        self.errors = 0
        self._took_s = 0.0

    @property
    def fill(self) -> float:
        """Part of the map that was in use after the last sweep."""
        return self.entries / self._table.max_entries

    @property
    def max_entries(self) -> int:
        """The map's size."""
        return self._table.max_entries

    @property
    def pause_s(self) -> float:
        """How long to wait for the next sweep: the fuller, the shorter."""
        by_level = next((seconds for level, seconds in PAUSES if self.fill <= level), PAUSES[-1][1])
        return max(by_level, self._took_s * SHARE)

    async def run(self) -> None:
        """Sweep until cancelled. A failed sweep is counted and tried again at the next turn."""
        while True:
            await asyncio.sleep(self.pause_s)
            started = time.monotonic()
            try:
                await self.sweep(time.monotonic_ns())
            except CiliateError:
                self.errors += 1
            self._took_s = time.monotonic() - started

    async def sweep(self, now_ns: int) -> Sweep:
        """One pass. Raises CiliateError when the map cannot be read."""
        result = Sweep()
        self._begin()
        for keys, values, count in self._table.chunks(CHUNK):
            result.entries += count
            found, entries = np.frombuffer(keys, self._key), np.frombuffer(values, self._entry)
            over = self._over(found, entries, now_ns)
            if over.any():
                result.removed += self._table.delete_packed(found[over].tobytes())
                self._removed(found[over], entries[over], now_ns, result)
            self._kept(entries[~over])
            await asyncio.sleep(0)
        self._end()
        self.entries = max(result.entries - result.removed, 0)
        self.removed_total += result.removed
        return result

    def _over(self, keys: Records, entries: Records, now_ns: int) -> Mask:
        over: Mask = entries["expires_ns"] < now_ns
        return over

    def _begin(self) -> None:
        """A sweep starts."""

    def _removed(self, keys: Records, entries: Records, now_ns: int, result: Sweep) -> None:
        """Of each chunk: what was removed."""

    def _kept(self, entries: Records) -> None:
        """Of each chunk: what stays."""

    def _end(self) -> None:
        """The sweep is complete."""


class ConntrackCollector(Collector):
    """Of the connection table. `emit` takes FLOW_EVENT records; `live_backends`, when given, returns the (address,
    port) pairs of all Service backends as 18 bytes each, so that choices of vanished ones are forgotten; `endpoints`
    the ids of this node's pods, so that what a pod leaves behind goes with it."""

    def __init__(
        self,
        conntrack: Table,
        emit: Callable[[Records], None],
        room: Room | None = None,
        live_backends: Callable[[], Set[bytes]] | None = None,
        endpoints: Callable[[], frozenset[int]] = frozenset,
    ) -> None:
        super().__init__(conntrack, CT_KEY, CT_ENTRY)
        self._emit, self._room, self._live, self._endpoints = emit, room, live_backends, endpoints
        self._backends: Set[bytes] | None = None
        self._known: frozenset[int] = frozenset()
        self._gone: list[int] = []

    def _begin(self) -> None:
        self._backends = self._live() if self._live is not None else None
        now = self._endpoints()
        self._gone = sorted(self._known - now)
        self._known = now
        if self._room is not None:
            self._room.begin()

    def _over(self, keys: Records, entries: Records, now_ns: int) -> Mask:
        over = super()._over(keys, entries, now_ns)
        if self._gone:
            over = over | np.isin(entries["endpoint_id"], self._gone)
        if self._backends is not None:
            for i in np.flatnonzero((keys["scope"] == CtScope.SERVICE) & ~over):
                over[i] = entries["nat_address"][i].tobytes() + entries["nat_port"][i].tobytes() not in self._backends
        return over

    def _removed(self, keys: Records, entries: Records, now_ns: int, result: Sweep) -> None:
        if self._room is not None:
            self._room.removed(entries)
        closing = (keys["scope"] != CtScope.SERVICE) & ((entries["flags"] & CtFlags.CLOSED) == 0)
        if closing.any():
            records = close_records(keys[closing], entries[closing], now_ns)
            result.closed += len(records)
            self._emit(records)

    def _kept(self, entries: Records) -> None:
        if self._room is not None:
            self._room.kept(entries)

    def _end(self) -> None:
        if self._room is not None:
            self._room.end()
