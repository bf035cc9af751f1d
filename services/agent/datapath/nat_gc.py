"""Collection of translations: pairs whose time is over leave the table in batches.

    nat_table --chunks--> numpy: expires_ns < now, or a Service's backend that is gone --delete batch

Both entries of a pair have the same time. Collection gives ports back: the kernel takes none that is still in the
table. A client of a backend that no slice has any more is not left to wait: its next packet finds another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any, Protocol

import numpy as np

from services.agent.abi.nat import NAT_ENTRY, NatFlags
from services.common.errors import CiliateError

CHUNK = 8192
GRACE_NS = 2_000_000_000
"""Beyond the end, so that no packet is between looking an entry up and prolonging it."""


class NatMap(Protocol):
    """What is needed of the map; `maps.PinnedMap` has it."""

    key_size: int

    def chunks(self, count: int = ...) -> Iterator[tuple[bytes, bytes, int]]:
        """Yields (keys, values, how many)."""
        ...

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Remove entries; absent ones are a success."""
        ...


class NatCollector:
    """Sweeps the table every `interval_s`. `live_backends`, when given, returns the (address, port) pairs of all
    Service backends as 18 bytes each."""

    def __init__(
        self, table: NatMap, interval_s: float = 5.0, live_backends: Callable[[], Set[bytes]] | None = None
    ) -> None:
        self._table, self._interval, self._live = table, interval_s, live_backends
        self.entries = 0
        """How many there were at the last sweep."""
        self.removed_total = 0
        self.errors = 0

    async def run(self) -> None:
        """Sweep until cancelled. A failed sweep is counted and tried again at the next turn."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.sweep(time.monotonic_ns())
            except CiliateError:
                self.errors += 1

    async def sweep(self, now_ns: int) -> int:
        """One pass; how many entries went. Raises CiliateError when the table cannot be read."""
        entries = removed = 0
        live = self._live() if self._live is not None else None
        for keys, values, count in self._table.chunks(CHUNK):
            over = self._over(values, now_ns, live)
            size = self._table.key_size
            self._table.delete_batch([keys[i * size : (i + 1) * size] for i in over])
            entries, removed = entries + count, removed + len(over)
            await asyncio.sleep(0)
        self.entries = entries - removed
        self.removed_total += removed
        return removed

    @staticmethod
    def _over(values: bytes, now_ns: int, live: Set[bytes] | None) -> Any:
        found = np.frombuffer(values, NAT_ENTRY)
        over = found["expires_ns"].astype(np.int64) < now_ns - GRACE_NS
        if live is not None:
            originals = (found["service_id"] != 0) & ((found["flags"] & NatFlags.ANSWER) == 0)
            for i in np.flatnonzero(originals & ~over):
                over[i] = found["daddr"][i].tobytes() + found["dport"][i].tobytes() not in live
        return np.flatnonzero(over)
