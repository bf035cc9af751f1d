"""The suite by two processes at once, as pytest-xdist's workers: `./dev test` without arguments.

Sandboxes take turns in one lane: they start many processes, and mostly wait for them. The rest goes file by file to
whoever is free. A test that is marked `alone` runs while no other one does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import NodeManager

SANDBOXES = "tests/e2e/"
DOOR, ROOM = Path(__file__).parent, Path(__file__)
"""What is locked: nothing has to be made for it, nor taken away."""
NodeManager.EXIT_TIMEOUT = 20
"""Who is interrupted takes down what it has put up before it goes."""


def takes_turns(nodeid: str) -> bool:
    """Whether a test belongs to the lane of sandboxes."""
    return nodeid.startswith(SANDBOXES)


class Lanes(LoadFileScheduling):
    """A file's tests stay together, with what they share; the sandboxes' files are as one."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False  # the lane of sandboxes first, then as collected
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return SANDBOXES if takes_turns(nodeid) else super()._split_scope(nodeid)


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def turn(alone: bool) -> Iterator[None]:
    """The room is for all, or for one alone. Who waits for that stands in the door and lets nobody in."""
    with contextlib.ExitStack() as inside:
        with locked(DOOR, fcntl.LOCK_EX):
            inside.enter_context(locked(ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield
