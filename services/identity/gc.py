"""Collection of identities that nobody refers to any more.

Every replica collects; no leader is needed, because the transaction that deletes an identity holds only while no
reference exists: an allocation at the same moment is either before it (nothing is deleted) or after it (it finds
nothing and allocates anew).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from services.common.errors import Unavailable
from services.common.log import get_logger
from services.identity.keys import Keys
from services.identity.leases import View
from services.identity.store import Absent, Delete, Holds, Store

log = get_logger("gc")


class GraceClock:
    """Knows since when each identity is unreferenced. Pure: time is an argument.

    The clock of an identity starts when it is first seen so, and again after every reference in between, which
    shows as another revision. A restart starts all clocks anew: late is safe.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._since: dict[int, tuple[int, float]] = {}

    def due(self, unreferenced: Mapping[int, int], now: float) -> list[int]:
        """Those that have been unreferenced (identity -> revision since) for the whole grace period."""
        fresh: dict[int, tuple[int, float]] = {}
        for number, revision in unreferenced.items():
            known = self._since.get(number)
            fresh[number] = known if known and known[0] == revision else (revision, now)
        self._since = fresh
        return [number for number, (_, since) in fresh.items() if now - since >= self._grace_seconds]


class Collector:
    """Deletes what is due, some times per grace period. `collected` hears of every number given back."""

    def __init__(
        self, store: Store, keys: Keys, view: View, grace_seconds: float, collected: Callable[[int], None]
    ) -> None:
        self._store, self._keys, self._view = store, keys, view
        self._clock = GraceClock(grace_seconds)
        self._interval = min(30.0, max(0.05, grace_seconds / 4))
        self._collected = collected

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.sweep(time.monotonic())
            except Unavailable as error:
                log.debug("sweep put off", reason=str(error))

    async def sweep(self, now: float) -> int:
        """Delete every identity that is due at `now` (seconds, any origin); returns how many went."""
        count = 0
        for number in self._clock.due(self._view.state.unreferenced, now):
            count += await self._collect(number)
        if count:
            log.info("identities collected", count=count)
        return count

    async def _collect(self, number: int) -> bool:
        canonical = self._view.state.identities.get(number)
        if canonical is None:
            return False
        master_key, labels_key = self._keys.identity(number), self._keys.labels(canonical)
        outcome = await self._store.transact(
            [
                Absent(self._keys.references(number)),
                Holds(master_key, canonical.encode()),
                Holds(labels_key, b"%d" % number),
            ],
            [Delete(master_key), Delete(labels_key)],
        )
        if outcome.succeeded:
            self._collected(number)
        return outcome.succeeded
