"""The memory of a process that keeps a million objects: short pauses, and what a start needed is given back.

A full collection walks everything that lives, while nothing else runs: 0.35 s for a million objects, and it comes once
a quarter more has been kept. Here what survives one is set aside (`gc.freeze`), so an object is walked once in its life
and not each time. Cycles among old objects are found once a day, when everything is looked at.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Mapping
from typing import Literal

EVERYTHING_SECONDS = 24 * 3600.0
_OLDEST = 2


class SetAside:
    """A callback for `gc.callbacks`."""

    def __init__(self, now: float, everything_seconds: float = EVERYTHING_SECONDS) -> None:
        self._every, self._due = everything_seconds, now + everything_seconds

    def __call__(self, phase: Literal["start", "stop"], info: Mapping[str, int]) -> None:
        if info["generation"] != _OLDEST:
            return
        if phase == "stop":
            gc.freeze()
        elif (now := time.monotonic()) >= self._due:
            self._due = now + self._every
            gc.unfreeze()


def keep_short() -> None:
    """From now on, in this process."""
    gc.callbacks.append(SetAside(time.monotonic()))


def give_back() -> None:
    """Return what was freed to the system (malloc_trim(3)): after a start, which takes more than what it leaves."""
    with contextlib.suppress(OSError, AttributeError):  # another libc than glibc
        ctypes.CDLL(None).malloc_trim(0)
