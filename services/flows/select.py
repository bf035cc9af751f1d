"""Which rows a request means: `number`, `first`, `since`, `until` (the Hubble API's reference, 4.1 and trap 8).

`number` counts per node, as it does through Hubble's relay; on a node there is one. Result: rows in order of time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.flows.columns import STORED, Array, Columns, Kind
from services.flows.dictionary import Dictionaries
from services.flows.filters import Filters
from services.flows.store import Segment

Held = list[tuple[Segment, int]]


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


class Selection:
    """Rows of pinned segments, in the order of time."""

    def __init__(self, parts: list[tuple[Segment, Array, Array]]) -> None:
        """`parts`: (segment, rows, facets)."""
        self._segments = [segment for segment, _, _ in parts]
        sizes = [len(rows) for _, rows, _ in parts]
        self._part = np.repeat(np.arange(len(parts)), sizes)
        self._row = _joined([rows for _, rows, _ in parts], np.dtype(np.intp))
        self._facet = _joined([facets for _, _, facets in parts], np.dtype(np.uint8))
        times = _joined([segment.columns["time_ns"][rows] for segment, rows, _ in parts], np.dtype(np.int64))
        self._order = np.argsort(times, kind="stable")

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
                    values[here] = self._segments[part].columns[name][rows[here]]
            yield columns, self._facet[order]


def _joined(arrays: list[Array], kind: np.dtype[np.generic]) -> Array:
    return np.concatenate(arrays) if arrays else np.zeros(0, kind)


async def select(held: Held, dictionaries: Dictionaries, filters: Filters, window: Window) -> Selection:
    """The rows of the past; other tasks have a turn after every segment."""
    newest_first = not window.first and window.since_ns is None
    limit = 0 if window.follow and not newest_first else window.number
    budget = _Budget(limit, [number for number, _ in dictionaries.nodes.contents()])
    parts: list[tuple[Segment, Array, Array]] = []
    for segment, rows in reversed(held) if newest_first else held:
        if budget.spent:
            break
        if _outside(segment, window, newest_first=newest_first):
            continue
        columns = {name: values[:rows] for name, values in segment.columns.items()}
        found, facets = _matching(columns, dictionaries, filters, window, newest_first=newest_first)
        kept = found[
            budget.take(columns["node"][found], columns["kind"][found] != Kind.LOST, newest_first=newest_first)
        ]
        if newest_first and window.until_ns is not None:
            # Counted first, cut afterwards: the newest N of everything, as far as they are not later than `until`.
            kept = kept[columns["time_ns"][kept] <= window.until_ns]
        if len(kept):
            parts.append((segment, kept, facets[kept]))
        await asyncio.sleep(0)
    return Selection(parts[::-1] if newest_first else parts)


def _outside(segment: Segment, window: Window, *, newest_first: bool) -> bool:
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
        self._unlimited = number == 0
        self._left = dict.fromkeys(nodes, number)

    @property
    def spent(self) -> bool:
        """Nothing may be taken any more."""
        return not self._unlimited and not any(self._left.values())

    def take(self, nodes: Array, flows: Array, *, newest_first: bool) -> Array:
        """Which of these rows (in insertion order) are taken."""
        taken = np.ones(len(nodes), np.bool_)
        if self._unlimited:
            return taken
        direction = -1 if newest_first else 1
        for node in np.unique(nodes).tolist():
            rows = np.flatnonzero(nodes == node)[::direction]
            count, left = np.cumsum(flows[rows]), self._left.get(node, 0)
            taken[rows] = np.where(flows[rows], count <= left, count < left)
            self._left[node] = left - min(left, int(count[-1]))
        return taken


def appended(held: Held, start: int) -> Iterator[tuple[Segment, int, int]]:
    """(segment, first row, end row) of what was appended from position `start` on."""
    for segment, rows in held:
        begin = max(0, start - segment.base)
        if begin < rows:
            yield segment, begin, rows
