"""Reads the lanes of connections' and requests' events: one per CPU in one mapped array (`bpf/lib/events.h`).

The kernel writes a record, then counts it; we copy records, then count them as taken. Nobody locks and nobody is woken:
whoever reads looks every few milliseconds.
"""

from __future__ import annotations

import mmap
import platform
from typing import Any

import numpy as np

from services.agent.abi.events import EVENT_LANE
from services.agent.events.reader import RingLayoutError, RingReader
from services.flows.columns import Array

ARRAY = 2
IN_ORDER = platform.machine() in ("x86_64", "i686")
"""Whether other CPUs see stores in the order in which they were made. Where they do not, a record is taken at the look
after the one that first saw it counted."""

LOOKS = 3
"""How often one read looks into the lanes until they are empty: the kernel then starts again at their beginning, whose
memory is at hand. More is written while the first look copies, next to nothing during the second."""


class LaneReader:
    """All lanes of a node. `read` gives copies of whole records, in the order of their times where there are several
    lanes."""

    wakes = False

    def __init__(self, map_fd: int, record: np.dtype[Any], entries: int) -> None:
        """`entries` is the map's size. Raises `RingLayoutError` when it is not what the loader made."""
        self.fd = map_fd
        size = record.itemsize * entries
        self._record = record
        self._pages = mmap.mmap(map_fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._records = np.frombuffer(self._pages, record, entries)
        heads = self._records.view(_head_in(record))["head"]
        if not heads[0]["mask"]:
            raise RingLayoutError("the map of events has no lanes: it was loaded by another version")
        self._places = int(heads[0]["mask"]) + 1
        self._heads = heads[: 2 * (entries // (self._places + 2)) : 2]
        self._first = self._heads["first"].astype(np.int64)
        if int(self._first[-1]) + self._places != entries:
            raise RingLayoutError("the map of events has another size than its lanes")
        self._written, self._taken, self._base = (self._heads[name] for name in ("written", "taken", "base"))
        self._seen = self._taken.copy() if not IN_ORDER else None
        self._turn = 0
        self.discarded = 0

    @property
    def pending(self) -> int:
        """Bytes that wait."""
        return int((self._written - self._taken).sum()) * self._record.itemsize

    @property
    def fill(self) -> float:
        """Share of the fullest lane in use."""
        return float((self._written - self._taken).max()) / self._places

    def read(self, limit: int) -> Array:
        """Up to `limit` records."""
        parts, left, lanes = [], limit, set()
        # Another lane comes first each time: none starves while the limit is reached.
        self._turn += 1
        for _ in range(LOOKS if self._seen is None else 1):
            waiting = self._waiting()
            for lane in np.roll(np.arange(len(waiting)), -(self._turn % len(waiting))):
                count = min(int(waiting[lane]), left)
                if count > 0:
                    parts += self._copy(int(lane), count)
                    left -= count
                    lanes.add(int(lane))
            if not waiting.any():
                break
        if not parts:
            return np.zeros(0, self._record)
        if len(parts) == 1:
            return parts[0]
        records: Array = np.concatenate(parts)
        return records if len(lanes) == 1 else records[np.argsort(records["time_ns"], kind="stable")]

    def _waiting(self) -> Array:
        """Records by lane."""
        written = self._written.copy()
        if self._seen is not None:
            written, self._seen = self._seen, written
        waiting: Array = (written - self._taken).astype(np.int64)
        return waiting

    def _copy(self, lane: int, count: int) -> list[Array]:
        """The next records of a lane, in one piece or, around its end, in two."""
        # The kernel moves the base of an empty lane only, and this one is not: what is read now stays true.
        start = int(self._taken[lane] - self._base[lane]) & (self._places - 1)
        first = int(self._first[lane])
        straight = min(count, self._places - start)
        parts = [self._records[first + start : first + start + straight].copy()]
        if straight < count:
            parts.append(self._records[first : first + count - straight].copy())
        self._taken[lane] += np.uint64(count)
        return parts

    def close(self) -> None:
        """Unmap; the descriptor stays the caller's."""
        del self._records, self._heads, self._written, self._taken, self._base
        self._pages.close()


def _head_in(record: np.dtype[Any]) -> np.dtype[Any]:
    """A lane's head at the place of a record."""
    return np.dtype([("head", EVENT_LANE), ("rest", "u1", (record.itemsize - EVENT_LANE.itemsize,))])


EventReader = RingReader | LaneReader


def open_events(map_fd: int, record: np.dtype[Any]) -> EventReader:
    """A reader for a map of records, whichever kind it is. Raises `RingLayoutError`, `OSError`."""
    with open(f"/proc/self/fdinfo/{map_fd}", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file if ":" in line)
    if int(facts.get("map_type", 0)) == ARRAY:
        return LaneReader(map_fd, record, int(facts["max_entries"]))
    return RingReader.open(map_fd, record)
