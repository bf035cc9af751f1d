"""Retrying with exponential back-off and jitter: the one place where a failure is followed by another try."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator


class Backoff:
    """`async for attempt in backoff:` yields 0, 1, 2 ... and sleeps ever longer between them.

    `reset()` after a success makes the next failure wait the initial time again. Times are in seconds; `jitter`
    is the share of a wait that is random, so that a thousand agents do not come back in step.
    """

    def __init__(self, initial: float = 0.1, maximum: float = 10.0, jitter: float = 0.3) -> None:
        self.initial, self.maximum, self.jitter = initial, maximum, jitter
        self._attempt = 0

    def reset(self) -> None:
        """Forget earlier failures."""
        self._attempt = 0

    def delay(self) -> float:
        """Seconds until the next attempt."""
        exact = min(self.maximum, self.initial * 2.0 ** min(self._attempt, 30))
        return exact * (1.0 - self.jitter * random.random())

    async def wait(self) -> None:
        """Sleep before the next attempt."""
        delay = self.delay()
        self._attempt += 1
        await asyncio.sleep(delay)

    async def __aiter__(self) -> AsyncIterator[int]:
        count = 0
        while True:
            yield count
            count += 1
            await self.wait()
