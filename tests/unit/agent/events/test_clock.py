"""Kernel time to wall clock."""

from __future__ import annotations

import numpy as np

from services.agent.events.clock import REMEASURE_NS, WallClock


def test_it_follows_a_clock_that_is_set() -> None:
    monotonic, offset = 1_000, 50_000_000_000
    clock = WallClock(lambda: monotonic + offset, lambda: monotonic)
    assert clock.convert(np.array([7], np.uint64)).tolist() == [7 + offset]
    offset += 3_000
    assert clock.now() == monotonic + offset - 3_000
    monotonic += REMEASURE_NS
    assert clock.now() == monotonic + offset
