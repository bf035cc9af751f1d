"""Flows in memory: time-ordered segments of columns, bounded by count, oldest thrown away first.

A row's *position* is its place in everything that was ever appended: it tells a follower where to go on, and how
many rows it missed when the store has moved past it. Rows of one node are appended in the order they were seen.
Single-threaded by design: everything happens in the event loop's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from services.flows.columns import DICTIONARY_OF, STORED, Array, Columns, Kind, length, zeros
from services.flows.dictionary import Dictionaries, Uses
from services.flows.entries import NodeRef

MAX_SEGMENT_ROWS = 262_144
MIN_SEGMENT_ROWS = 256
RATE_SECONDS = 60


class Segment:
    """A run of rows. Appended to until full, then immutable."""

    __slots__ = (
        "base",
        "capacity",
        "columns",
        "events_before",
        "evicted",
        "lost",
        "max_time",
        "min_time",
        "pins",
        "rows",
        "uses",
    )

    def __init__(self, base: int, capacity: int, dictionaries: Dictionaries, events_before: int = 0) -> None:
        self.base, self.capacity, self.rows = base, capacity, 0
        self.events_before = events_before
        """Events told before the first row: flows, and those that earlier rows say were lost."""
        self.columns: Columns = {name: np.zeros(capacity, kind) for name, kind in STORED.items()}
        self.uses = Uses(dictionaries)
        self.min_time, self.max_time = np.iinfo(np.int64).max, 0
        self.lost = 0
        """Rows that are no flows but tell of lost events."""
        self.pins = 0
        self.evicted = False

    def append(self, columns: Columns, start: int, node: int) -> int:
        """Copy rows from `start` on, as many as fit; returns how many."""
        count = min(self.capacity - self.rows, length(columns) - start)
        rows = slice(self.rows, self.rows + count)
        for name, values in columns.items():
            self.columns[name][rows] = values[start : start + count]
        self.columns["node"][rows] = node
        self.uses.add("nodes", np.array([node]))
        for name, dictionary in DICTIONARY_OF.items():
            if name in columns:
                self.uses.add(dictionary, columns[name][start : start + count])
        times = columns["time_ns"][start : start + count]
        self.min_time = min(self.min_time, int(times.min()))
        self.max_time = max(self.max_time, int(times.max()))
        self.rows += count
        return count

    def view(self, rows: int) -> Columns:
        """The first `rows` rows."""
        return {name: values[:rows] for name, values in self.columns.items()}

    def seal(self) -> None:
        """No more rows: each column takes the narrowest type that holds its values, zeros take nothing."""
        for name, values in self.columns.items():
            self.columns[name] = _narrow(name, values[: self.rows])


def _narrow(name: str, values: Array) -> Array:
    highest = int(values.max(initial=0))
    if not highest:
        return zeros(name, len(values))
    kind = np.min_scalar_type(highest) if name != "time_ns" else values.dtype
    return values.astype(kind)


class Mark(NamedTuple):
    """A place between two rows: how many rows, and how many events, were told before it."""

    position: int
    events: int


class FlowStore:
    """Keeps the newest `capacity` rows, in whole segments."""

    def __init__(self, capacity: int, dictionaries: Dictionaries | None = None) -> None:
        self.capacity = capacity
        self.dictionaries = dictionaries or Dictionaries()
        self.segments: deque[Segment] = deque()
        self.listeners: set[Callable[[], None]] = set()
        """Called after rows were appended."""
        self.evicting: list[Callable[[Segment], None]] = []
        """Called with a segment that is thrown away, while its numbers still mean something."""
        self.end = 0
        """Position after the newest row."""
        self.seen = 0
        """Flows ever appended (without lost-event rows)."""
        self.lost = 0
        """Events ever told to be lost."""
        self.events = 0
        """Events ever told: flows and lost ones. What a follower misses is counted in these."""
        self.missed = 0
        """Events that followers did not get because the store had thrown them away before."""
        self._segment_rows = max(MIN_SEGMENT_ROWS, min(MAX_SEGMENT_ROWS, capacity // 16))
        self._rate: deque[tuple[int, int]] = deque()

    @property
    def first(self) -> int:
        """Position of the oldest row held."""
        return self.segments[0].base if self.segments else self.end

    @property
    def mark(self) -> Mark:
        """Where something begins that is appended from now on."""
        return Mark(self.end, self.events)

    @property
    def first_mark(self) -> Mark:
        """Where the oldest row held is."""
        return Mark(self.first, self.segments[0].events_before) if self.segments else self.mark

    @property
    def evicted(self) -> int:
        """Flows that were thrown away to make room."""
        return self.seen - self.flows

    @property
    def flows(self) -> int:
        """Flows held now."""
        return self.end - self.first - sum(segment.lost for segment in self.segments)

    def node(self, node: NodeRef) -> int:
        """The number of a node in the `node` column; it is kept until `release_node`, and while rows have it."""
        number = self.dictionaries.nodes.intern(node)
        self.dictionaries.nodes.retain(np.array([number]))
        return number

    def release_node(self, number: int) -> None:
        """Nothing more will be appended under this number."""
        self.dictionaries.nodes.release(np.array([number]))

    def append(self, columns: Columns, node: int) -> None:
        """Add a batch of flows of one node; numbers are this store's, times are wall-clock nanoseconds."""
        self._append(columns, node, 1)
        rows = length(columns)
        self.seen += rows
        if rows:
            self._count(int(columns["time_ns"][-1]), rows)
        self._tell()

    def append_lost(self, node: int, source: int, cpu: int, events: int, first_ns: int, last_ns: int) -> None:
        """Add a row that says how many events were lost, where and when."""
        values = {
            "time_ns": last_ns,
            "kind": Kind.LOST,
            "drop_reason": source,
            "source_port": cpu & 0xFFFF,
            "bytes": events,
            "reply_bytes": max(0, last_ns - first_ns),
        }
        self._append({name: np.array([value], STORED[name]) for name, value in values.items()}, node, events)
        self.segments[-1].lost += 1
        self.lost += events
        self._tell()

    def _append(self, columns: Columns, node: int, events_per_row: int) -> None:
        start, rows = 0, length(columns)
        while start < rows:
            if not self.segments or self.segments[-1].rows == self.segments[-1].capacity:
                if self.segments:
                    self.segments[-1].seal()
                self.segments.append(Segment(self.end, self._segment_rows, self.dictionaries, self.events))
            count = self.segments[-1].append(columns, start, node)
            start += count
            self.end += count
            self.events += count * events_per_row
        while self.end - self.first > self.capacity and len(self.segments) > 1:
            self._evict(self.segments.popleft())

    def _evict(self, segment: Segment) -> None:
        for listener in self.evicting:
            listener(segment)
        segment.evicted = True
        if not segment.pins:
            segment.uses.release()

    def _tell(self) -> None:
        for listener in tuple(self.listeners):
            listener()

    @contextmanager
    def pinned(self) -> Iterator[list[tuple[Segment, int]]]:
        """(segment, rows) of what is held now; while the context is open, the rows' numbers keep their meaning."""
        held = [(segment, segment.rows) for segment in self.segments]
        for segment, _ in held:
            segment.pins += 1
        try:
            yield held
        finally:
            for segment, _ in held:
                segment.pins -= 1
                if segment.evicted and not segment.pins:
                    segment.uses.release()

    def _count(self, now_ns: int, rows: int) -> None:
        second = now_ns // 1_000_000_000
        if self._rate and self._rate[-1][0] == second:
            self._rate[-1] = (second, self._rate[-1][1] + rows)
        else:
            self._rate.append((second, rows))
        while self._rate and self._rate[0][0] <= second - RATE_SECONDS:
            self._rate.popleft()

    def rate(self, now_ns: int) -> float:
        """Flows per second over the last minute."""
        since = now_ns // 1_000_000_000 - RATE_SECONDS
        return sum(rows for second, rows in self._rate if second > since) / RATE_SECONDS
