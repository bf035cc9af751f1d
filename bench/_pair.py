"""The bed of benches: two nodes with the same two pods, one of them without our hooks, and a reader of events."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from services.agent.abi.events import FLOW_EVENT
from services.agent.datapath import attach
from services.agent.events.lanes import open_events
from tests.datapath.node import inside, sh
from tests.datapath.wire import WiredNode

CORE, READER_CORE = 0, 1
"""Client and server share one core, the agent's part has the other: across cores the figures measure wake-ups."""
READ_SECONDS = 0.005
BATCH = 16_384


@contextlib.contextmanager
def pair(cache: Path, **sizes: int) -> Iterator[tuple[WiredNode, WiredNode]]:
    """(plain, policed): pods 1 (identity 1001) and 2 (1002) on each; the plain one's hooks are taken off again."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in (1, 2):
            node = WiredNode(cache, number, **sizes)
            stack.callback(node.close)
            node.add_pod(1, 1001)
            node.add_pod(2, 1002)
            made.append(node)
        plain, policed = made
        bare(plain)
        advance(policed)
        yield plain, policed


def bare(node: WiredNode) -> None:
    """Nothing of ours touches the packets of its pods."""
    for pod in node.pods.values():
        sh("tc", "qdisc", "del", "dev", f"lxc{pod.id}", "clsact", netns=node.name)


def advance(node: WiredNode) -> None:
    """The hooks of its pods are where an agent has them, seconds after it made them."""
    with inside(node.name):
        for pod in node.pods.values():
            attach.advance(pod.ifindex, node.root / "progs")


@contextlib.contextmanager
def reading(node: WiredNode, **rings: np.dtype[Any]) -> Iterator[None]:
    """Connection events, and those of the rings (map name -> record), are read on the other core, as an agent does."""
    opened = [(node.map(name).fd, record) for name, record in ({"events": FLOW_EVENT} | rings).items()]
    pid = os.fork()
    if not pid:
        _read(opened)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGTERM)
        status = os.waitpid(pid, 0)[1]
    if status:
        raise RuntimeError("the reader of events ended before its time: figures without it are not those of a node")


def _read(rings: list[tuple[int, np.dtype[Any]]]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        os.sched_setaffinity(0, {READER_CORE % (os.cpu_count() or 1)})
        readers = [open_events(fd, record) for fd, record in rings]
        while True:
            if not sum(len(reader.read(BATCH)) for reader in readers):
                time.sleep(READ_SECONDS)
    finally:
        traceback.print_exc()
        os._exit(1)
