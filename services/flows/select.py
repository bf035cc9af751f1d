"""Which rows a request means: `number`, `first`, `since`, `until` (the Hubble API's reference, 4.1 and trap 8).

`number` counts per node, as it does through Hubble's relay; on a node there is one. Result: rows in order of time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.flows.columns import STORED, Array, Columns, Kind
from services.flows.dictionary import Dictionaries
from services.flows.filters import Filters
from services.flows.history.stored import BrokenFile, StoredSegment
from services.flows.store import Segment

Held = Sequence[tuple[Segment | StoredSegment, int]]
Broken = Callable[[StoredSegment, BrokenFile], None]

STREAM_ROWS = 65_536
"""Rows that wait for their turn before the early ones among them are given out."""
COSTLY_ROWS = 256
"""Rows that filters look at one by one before others have a turn."""


def _keep(segment: StoredSegment, error: BrokenFile) -> None:
    """A reader without a history meets no stored segments."""
    raise error


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a request that says how far back and how many. Times are wall-clock nanoseconds, inclusive."""

    number: int = 0
    first: bool = False
    follow: bool = False
    since_ns: int | None = None
    until_ns: int | None = None

    @property
    def only_new(self) -> bool:
        """A follower that asked for nothing of the past."""
        return self.follow and not self.number and self.since_ns is None


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a segment, and the facets they are shown as."""

    columns: Columns
    rows: Array
    facets: Array

    def times(self) -> Array:
        """Of the rows."""
        return self.columns["time_ns"][self.rows]


class Selection:
    """Rows of pinned segments, in the order of time."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self._part = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
        self._row = _joined([part.rows for part in parts], np.dtype(np.intp))
        self._facet = _joined([part.facets for part in parts], np.dtype(np.uint8))
        self._order = np.argsort(_joined([part.times() for part in parts], np.dtype(np.int64)), kind="stable")

    def __len__(self) -> int:
        return len(self._order)

    def chunks(self, size: int) -> Iterator[tuple[Columns, Array]]:
        """(columns, facets) of at most `size` rows at a time."""
        for start in range(0, len(self._order), size):
            order = self._order[start : start + size]
            parts, rows = self._part[order], self._row[order]
            columns: Columns = {name: np.zeros(len(order), kind) for name, kind in STORED.items()}
            for part in np.unique(parts).tolist():
                here = parts == part
                for name, values in columns.items():
                    values[here] = self._parts[part].columns[name][rows[here]]
            yield columns, self._facet[order]


def _joined(arrays: list[Array], kind: np.dtype[np.generic]) -> Array:
    return np.concatenate(arrays) if arrays else np.zeros(0, kind)


async def select(
    held: Held, dictionaries: Dictionaries, filters: Filters, window: Window, broken: Broken = _keep
) -> AsyncIterator[Selection]:
    """The rows of the past, in order of time; other tasks have a turn after every segment.

    Oldest first, they come as soon as no later segment can hold an earlier row, so a request for everything keeps a
    few segments in memory, not all. `broken` is told which stored segment could not be read; its rows are left out.
    """
    few = 0 < window.number < sum(rows for _, rows in held)  # more than there is means everything
    newest_first = few and not window.first and window.since_ns is None
    limit = 0 if window.follow and not newest_first else window.number
    budget = _Budget(limit, [number for number, _ in dictionaries.nodes.contents()])
    wanted = [each for each in held if not _outside(each[0], window, newest_first=newest_first)]
    earliest = _earliest_after(wanted)
    parts: list[Part] = []
    touched: set[str] = set()
    for place, (segment, rows) in enumerate(reversed(wanted) if newest_first else wanted):
        if budget.spent:
            break
        try:
            if isinstance(segment, StoredSegment):
                await segment.prepare(touched)
            for begin, end in pieces(rows, filters, newest_first=newest_first):
                part = _part(segment, begin, end, dictionaries, filters, window, budget, newest_first=newest_first)
                parts += [part] if part is not None else []
                if filters.costly:
                    await asyncio.sleep(0)
                if budget.spent:
                    break
        except BrokenFile as error:
            assert isinstance(segment, StoredSegment)
            broken(segment, error)
            continue
        if isinstance(segment, StoredSegment):
            touched.update(segment.columns)
        if not newest_first and sum(len(each.rows) for each in parts) >= STREAM_ROWS:
            ready, parts = _split(parts, earliest[place])
            if ready:
                yield Selection(ready)
        await asyncio.sleep(0)
    if parts:
        yield Selection(parts[::-1] if newest_first else parts)


def pieces(rows: int, filters: Filters, *, newest_first: bool = False) -> list[tuple[int, int]]:
    """(first row, end row) of what filters are given at a time: everything, unless they look at rows one by one."""
    if not filters.costly:
        return [(0, rows)]
    found = [(begin, min(begin + COSTLY_ROWS, rows)) for begin in range(0, rows, COSTLY_ROWS)]
    return found[::-1] if newest_first else found


class _Cut(Columns):
    """Some rows of a segment; a column is cut (and, of a stored segment, read) when somebody looks at it."""

    def __init__(self, columns: Columns, begin: int, end: int) -> None:
        super().__init__(time_ns=columns["time_ns"][begin:end])
        self._columns, self._rows = columns, slice(begin, end)

    def __missing__(self, name: str) -> Array:
        self[name] = self._columns[name][self._rows]
        return self[name]


def _earliest_after(held: Held) -> list[int]:
    """For each segment: the earliest time in any later one."""
    times = [segment.min_time for segment, _ in held]
    earliest, lowest = [], int(np.iinfo(np.int64).max)
    for each in reversed(times):
        earliest.append(lowest)
        lowest = min(lowest, each)
    return earliest[::-1]


def _split(parts: list[Part], before_ns: int) -> tuple[list[Part], list[Part]]:
    """(rows earlier than `before_ns`, the others)."""
    ready: list[Part] = []
    waiting: list[Part] = []
    for part in parts:
        early = part.times() < before_ns
        for chosen, target in ((early, ready), (~early, waiting)):
            if chosen.any():
                target.append(Part(part.columns, part.rows[chosen], part.facets[chosen]))
    return ready, waiting


def _part(
    segment: Segment | StoredSegment,
    begin: int,
    end: int,
    dictionaries: Dictionaries,
    filters: Filters,
    window: Window,
    budget: _Budget,
    *,
    newest_first: bool,
) -> Part | None:
    """Those rows of one segment, from `begin` to `end`, that the request means."""
    columns = segment.view(end)
    if begin or end < segment.rows:
        columns = _Cut(columns, begin, end)
    found, facets = _matching(columns, dictionaries, filters, window, newest_first=newest_first)
    if not len(found):
        return None
    kept = found[budget.take(columns["node"][found], columns["kind"][found] != Kind.LOST, newest_first=newest_first)]
    if newest_first and window.until_ns is not None:
        # Counted first, cut afterwards: the newest N of everything, as far as they are not later than `until`.
        kept = kept[columns["time_ns"][kept] <= window.until_ns]
    if not len(kept):
        return None
    if isinstance(segment, StoredSegment):  # its rows alone; the file's columns need not stay
        return Part({name: columns[name][kept] for name in STORED}, np.arange(len(kept)), facets[kept])
    return Part(segment.columns, kept + begin, facets[kept])


def _outside(segment: Segment | StoredSegment, window: Window, *, newest_first: bool) -> bool:
    if newest_first:
        return False
    return (window.since_ns is not None and segment.max_time < window.since_ns) or (
        window.until_ns is not None and segment.min_time > window.until_ns
    )


def _matching(
    columns: Columns, dictionaries: Dictionaries, filters: Filters, window: Window, *, newest_first: bool
) -> tuple[Array, Array]:
    """(rows that pass the filters and times, or tell of losses; facets of all rows)."""
    passed, facets = filters.match(columns, dictionaries)
    passed |= columns["kind"] == Kind.LOST
    if not newest_first:
        if window.since_ns is not None:
            passed &= columns["time_ns"] >= window.since_ns
        if window.until_ns is not None:
            passed &= columns["time_ns"] <= window.until_ns
    return np.flatnonzero(passed), facets


class _Budget:
    """How many flows of each node may still be taken; rows that tell of losses are free, within the flows' range."""

    def __init__(self, number: int, nodes: list[int]) -> None:
        self._unlimited, self._number = number == 0, number
        self._left = dict.fromkeys(nodes, number)

    @property
    def spent(self) -> bool:
        """Nothing may be taken any more."""
        return not self._unlimited and bool(self._left) and not any(self._left.values())

    def take(self, nodes: Array, flows: Array, *, newest_first: bool) -> Array:
        """Which of these rows (in insertion order) are taken."""
        taken = np.ones(len(nodes), np.bool_)
        if self._unlimited:
            return taken
        direction = -1 if newest_first else 1
        for node in np.unique(nodes).tolist():
            rows = np.flatnonzero(nodes == node)[::direction]
            count, left = np.cumsum(flows[rows]), self._left.get(node, self._number)
            taken[rows] = np.where(flows[rows], count <= left, count < left)
            self._left[node] = left - min(left, int(count[-1]))
        return taken


def appended(held: Sequence[tuple[Segment, int]], start: int) -> Iterator[tuple[Segment, int, int]]:
    """(segment, first row, end row) of what was appended from position `start` on."""
    for segment, rows in held:
        begin = max(0, start - segment.base)
        if begin < rows:
            yield segment, begin, rows
