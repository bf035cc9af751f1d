"""Kernel time (CLOCK_MONOTONIC) -> wall clock, measured again now and then so that it follows NTP."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from services.flows.columns import Array

REMEASURE_NS = 1_000_000_000
SAMPLES = 3


class WallClock:
    """Adds the distance between the two clocks; clocks are arguments so that tests can have their own."""

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._measured = -REMEASURE_NS
        self._offset = 0

    def now(self) -> int:
        """Wall-clock nanoseconds, on the same scale as `convert`."""
        self._measure()
        return self._monotonic() + self._offset

    def convert(self, monotonic_ns: Array) -> Array:
        """Event times as wall-clock nanoseconds (i64)."""
        self._measure()
        return monotonic_ns.astype(np.int64) + self._offset

    def _measure(self) -> None:
        if self._monotonic() - self._measured < REMEASURE_NS and self._offset:
            return
        samples = []
        for _ in range(SAMPLES):
            before = self._monotonic()
            wall = self._wall()
            after = self._monotonic()
            samples.append((after - before, wall - (before + after) // 2))
        # The pair that was read fastest is the least wrong.
        self._offset = min(samples)[1]
        self._measured = self._monotonic()
