"""What survives a full collection is walked once; cycles among old objects are found in the end."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, time, weakref
from services.common import heap

class Thing: pass

def cycle():
    thing = Thing()
    thing.itself = thing
    return thing

aside = heap.SetAside(time.monotonic(), everything_seconds={every})
gc.callbacks.append(aside)
kept = [cycle() for _ in range(10_000)]
gone = weakref.ref(cycle())
gc.collect()
assert gone() is None, "young cycles are collected"
assert gc.get_freeze_count() > 10_000 and len(gc.get_objects()) < 1_000, "survivors are set aside"
old = weakref.ref(kept[0])
kept.clear()
gc.collect()
print("found" if old() is None else "kept")
"""


def run(every: float) -> str:
    program = PROGRAM.format(every=every)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


def test_old_objects_are_not_walked_again() -> None:
    assert run(3600.0) == "kept"


def test_everything_is_looked_at_when_it_is_due() -> None:
    assert run(0.0) == "found"
