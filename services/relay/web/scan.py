"""Runs of rows that a query means, from memory and from disk, and the newest of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from services.flows.columns import STORED, Array, Columns, Kind
from services.flows.dictionary import Dictionaries
from services.flows.entries import Party
from services.flows.facets import responses
from services.flows.follow import Archive
from services.flows.history.stored import BrokenFile, StoredSegment
from services.flows.metrics.names import Namer
from services.flows.select import Held, Part, Selection
from services.flows.store import FlowStore, Segment
from services.relay.web.groups import By, namer
from services.relay.web.params import Query

COSTLY_ROWS = 4096
"""Rows at a time of a filter that looks at them one by one."""


class Names:
    """Group numbers of parties, remembered between queries."""

    def __init__(self) -> None:
        self._namers = {by: Namer[Party](namer(by)) for by in By}

    def of(self, by: By, dictionaries: Dictionaries) -> tuple[Array, list[str]]:
        """(party number -> group number, group number -> id)."""
        found = self._namers[by]
        return found.table(dictionaries.parties), found.names


@dataclass(frozen=True, slots=True)
class Run:
    """Rows `index` of a segment's columns passed; `facets` is of all rows."""

    columns: Columns
    index: Array
    facets: Array


class Scanner:
    """Reads a store and the history behind it. Other tasks have a turn between segments."""

    def __init__(self, store: FlowStore, archive: Archive) -> None:
        self.store, self._archive, self.names = store, archive, Names()

    @contextmanager
    def pinned(self) -> Iterator[Held]:
        """Every segment there is, oldest first; numbers in them keep their meaning while the context is open."""
        with self._archive.pinned() as older, self.store.pinned() as newer:
            yield [*older, *newer]

    async def runs(
        self, held: Held, query: Query, since_ns: int, until_ns: int, columns: Sequence[str]
    ) -> AsyncIterator[Run]:
        """Newest segment first. `columns`: what the caller will look at, read ahead from files.

        Rows that tell of losses are not among them.
        """
        for segment, rows in reversed(held):
            if segment.max_time < since_ns or segment.min_time > until_ns:
                continue
            try:
                if isinstance(segment, StoredSegment):
                    await segment.prepare(columns)
                run = await self._run(segment, rows, query, since_ns, until_ns)
            except BrokenFile as error:
                assert isinstance(segment, StoredSegment)
                self._archive.set_aside(segment, error)
                continue
            if len(run.index):
                yield run
            await asyncio.sleep(0)

    async def _run(
        self, segment: Segment | StoredSegment, rows: int, query: Query, since_ns: int, until_ns: int
    ) -> Run:
        columns = segment.view(rows)
        if not query.filters.costly:
            return self.match(columns, query, since_ns, until_ns)
        parts = []
        for start in range(0, rows, COSTLY_ROWS):
            part = {name: columns[name][start : start + COSTLY_ROWS] for name in STORED}
            found = self.match(part, query, since_ns, until_ns)
            parts.append((found.index + start, found.facets))
            await asyncio.sleep(0)
        return Run(columns, np.concatenate([each[0] for each in parts]), np.concatenate([each[1] for each in parts]))

    def match(self, columns: Columns, query: Query, since_ns: int, until_ns: int) -> Run:
        """The rows of one run of columns."""
        times = columns["time_ns"]
        passed, facets = query.filters.match(columns, self.store.dictionaries)
        passed &= (times >= since_ns) & (times <= until_ns) & (columns["kind"] != Kind.LOST)
        if query.source or query.destination or query.group:
            passed &= self._in_groups(columns, query)
        return Run(columns, np.flatnonzero(passed), facets)

    def _in_groups(self, columns: Columns, query: Query) -> Array:
        table, ids = self.names.of(query.by, self.store.dictionaries)
        sources, destinations = openers(columns, table)

        def are(numbers: Array, wanted: str) -> Array:
            found: Array = numbers == (ids.index(wanted) if wanted in ids else -1)
            return found

        mask: Array = np.ones(len(sources), np.bool_)
        if query.source:
            mask &= are(sources, query.source)
        if query.destination:
            mask &= are(destinations, query.destination)
        if query.group:
            mask &= are(sources, query.group) | are(destinations, query.group)
        return mask

    async def newest(self, held: Held, query: Query, now_ns: int) -> Selection:
        """The newest `query.limit` rows, oldest first; their columns are copies."""
        since_ns, until_ns = query.span(now_ns)
        parts: list[Part] = []
        kept = 0
        async for run in self.runs(held, query, since_ns, until_ns, tuple(STORED)):
            index = run.index[-query.limit :] if _ordered(run) else _latest(run, query.limit)
            parts.append(
                Part({name: run.columns[name][index] for name in STORED}, np.arange(len(index)), run.facets[index])
            )
            kept += len(index)
            if kept >= 2 * query.limit:  # segments overlap a little: one more than is needed makes up for it
                break
        return _cut(parts[::-1], query.limit)


def openers(columns: Columns, table: Array) -> tuple[Array, Array]:
    """(group of who asked, group of who was asked): a response is told from its server's side."""
    sources, destinations = table[columns["source"]], table[columns["destination"]]
    swapped = responses(columns)
    return np.where(swapped, destinations, sources), np.where(swapped, sources, destinations)


def _ordered(run: Run) -> bool:
    times = run.columns["time_ns"][run.index]
    return bool((times[1:] >= times[:-1]).all())


def _latest(run: Run, limit: int) -> Array:
    order = np.argsort(run.columns["time_ns"][run.index], kind="stable")
    found: Array = run.index[order[-limit:]]
    return found


def _cut(parts: list[Part], limit: int) -> Selection:
    times = np.concatenate([part.times() for part in parts]) if parts else np.zeros(0, np.int64)
    if len(times) > limit:
        bound = np.partition(times, len(times) - limit)[len(times) - limit]
        parts = [
            Part(part.columns, part.rows[part.times() >= bound], part.facets[part.times() >= bound]) for part in parts
        ]
    return Selection(parts)
