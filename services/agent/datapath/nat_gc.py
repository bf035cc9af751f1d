"""Collection of translations: pairs whose time is over leave the table in batches.

    nat_table --chunks--> numpy: expires_ns < now --delete batch

Both entries of a pair have the same time. Collection gives ports back: the kernel takes none that is still in the
table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from services.agent.abi.nat import NAT_ENTRY
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
    """Sweeps the table every `interval_s`."""

    def __init__(self, table: NatMap, interval_s: float = 5.0) -> None:
        self._table, self._interval = table, interval_s
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
        for keys, values, count in self._table.chunks(CHUNK):
            over = self._over(values, now_ns)
            size = self._table.key_size
            self._table.delete_batch([keys[i * size : (i + 1) * size] for i in over])
            entries, removed = entries + count, removed + len(over)
            await asyncio.sleep(0)
        self.entries = entries - removed
        self.removed_total += removed
        return removed

    @staticmethod
    def _over(values: bytes, now_ns: int) -> Any:
        expires = np.frombuffer(values, NAT_ENTRY)["expires_ns"].astype(np.int64)
        return np.flatnonzero(expires < now_ns - GRACE_NS)
