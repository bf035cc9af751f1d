"""A chore: whenever something that it looks at has changed, compute what is missing and write it. That is all."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from services.common.log import get_logger
from services.common.retry import Backoff
from services.operator.cache import Cache
from services.operator.writes import Write, Writer


class Followed(Protocol):
    """Something that a chore looks at."""

    synced: asyncio.Event
    changed: Callable[[], None]


PATIENCE, MAX_SETTLE = 9.0, 30.0
"""A chore plans a tenth of the time at most, as long as a plan takes less than three seconds."""


class Chore:
    """`plan` is a pure function of what the caches hold. A plan that was carried out must be empty the next time.

    `pace`: writes per second at most; what is more than that waits, and what changes back meanwhile is never written.
    """

    def __init__(
        self,
        name: str,
        caches: Sequence[Followed],
        writer: Writer,
        plan: Callable[[], Iterable[Write]],
        settle: float = 0.05,
        pace: int = 0,
        backoff: Backoff | None = None,
        period: float | None = None,
    ) -> None:
        """`period`: seconds after which a plan is made although nothing moved, where time itself is looked at."""
        self._period = period
        self.name, self.caches, self._writer, self._plan = name, caches, writer, plan
        self._settle, self._pace = settle, pace
        self._backoff = backoff or Backoff(initial=0.5, maximum=30.0)
        self._moved = asyncio.Event()
        self._log = get_logger(name)
        self.failures: dict[str, str] = {}
        self.rounds = 0
        self.plan_seconds = 0.0
        """What the last plan took."""
        self._paced_at = time.monotonic()

    def touch(self) -> None:
        """Something may have changed."""
        self._moved.set()

    async def run(self) -> None:
        """For ever. What changes while a round is under way makes for another one."""
        for cache in self.caches:
            await cache.synced.wait()
        self.touch()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._period):
                    await self._moved.wait()
            # Changes come in flocks; and a plan for a large cluster may take a tenth of the time, not all of it.
            await asyncio.sleep(min(MAX_SETTLE, max(self._settle, PATIENCE * self.plan_seconds)))
            self._moved.clear()
            began = time.perf_counter()
            writes = list(self._plan())
            self.plan_seconds = time.perf_counter() - began
            some = writes[: self._allowance()] if self._pace else writes
            learners = [each for each in self.caches if isinstance(each, Cache)]
            self.failures = await self._writer.apply(some, learners)
            self.rounds += 1
            if len(some) < len(writes):
                self.touch()
                await asyncio.sleep(1.0)
            elif self.failures:
                self.touch()
                await self._backoff.wait()
            else:
                self._backoff.reset()

    def _allowance(self) -> int:
        """Writes that the pace allows now: a second's, or what it allowed since the last round."""
        before, self._paced_at = self._paced_at, time.monotonic()
        return int(self._pace * max(1.0, self._paced_at - before))
