"""Streams of rows as responses: the past that was selected, then what is appended, with gaps told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import numpy as np

from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2 as pb
from services.flows.columns import Array, Columns, Kind, take
from services.flows.entries import NodeRef
from services.flows.filters import Filters
from services.flows.history.stored import BrokenFile, StoredSegment
from services.flows.render import NANOSECONDS, Renderer, set_time
from services.flows.select import Held, Window, appended, pieces, select
from services.flows.store import FlowStore, Mark, Segment

CHUNK = 256
"""Rows rendered in one go, before others have a turn."""
GAP_SECONDS = 1.0
"""Gaps are told at most this often."""

Now = Callable[[], int]


class Archive(Protocol):
    """What lies on disk (`history.History`); agents have none."""

    def pinned(self) -> AbstractContextManager[list[tuple[StoredSegment, int]]]:
        """(segment, rows) of what memory does not hold, oldest first."""
        ...

    def set_aside(self, segment: StoredSegment, error: BrokenFile) -> None:
        """A segment could not be read."""
        ...


class NoArchive:
    """Memory is all there is."""

    def pinned(self) -> AbstractContextManager[list[tuple[StoredSegment, int]]]:
        """Nothing."""
        return nullcontext([])

    def set_aside(self, segment: StoredSegment, error: BrokenFile) -> None:
        """Never called."""
        raise error


async def past(
    store: FlowStore, archive: Archive, renderer: Renderer, filters: Filters, window: Window
) -> AsyncIterator[pb.GetFlowsResponse]:
    """What is held now, on disk and in memory, and was asked for, in the order of time."""
    with archive.pinned() as older, store.pinned() as newer:
        held: Held = [*older, *newer]
        async for selection in select(held, store.dictionaries, filters, window, archive.set_aside):
            for columns, facets in selection.chunks(CHUNK):
                for response in renderer.responses(columns, facets):
                    yield response
                await asyncio.sleep(0)


class Follower:
    """Rows from a place on, as they are appended. One that the store overtakes is told how many events it missed."""

    def __init__(self, store: FlowStore, server: NodeRef, mark: Mark, now: Now) -> None:
        self._store, self._mark = store, mark
        self._gap = _Gap(server, now)
        self._ended = False

    async def run(
        self, renderer: Renderer, filters: Filters, until_ns: int | None
    ) -> AsyncIterator[pb.GetFlowsResponse]:
        """Ends only at the first row that is later than `until_ns`, or with its caller."""
        with self._listening() as news:
            while not self._ended:
                news.clear()
                self._skip_gap()
                start, self._mark = self._mark, self._store.mark
                with self._store.pinned() as held:
                    for columns, facets in self._runs(held, start.position, filters, until_ns):
                        for response in renderer.responses(columns, facets):
                            yield response
                        await asyncio.sleep(0)
                for response in self._gap.due():
                    yield response
                if self._store.end == self._mark.position and not self._ended:
                    await _wait(news, self._gap.seconds)

    def _skip_gap(self) -> None:
        first = self._store.first_mark
        if self._mark.position < first.position:
            missed = first.events - self._mark.events
            self._gap.missed(missed)
            self._store.missed += missed
            self._mark = first

    def _runs(
        self, held: list[tuple[Segment, int]], start: int, filters: Filters, until_ns: int | None
    ) -> Iterator[tuple[Columns, Array]]:
        for segment, begin, end in self._appended(held, start, filters):
            run = {name: values[begin:end] for name, values in segment.columns.items()}
            passed, facets = filters.match(run, self._store.dictionaries)
            rows = np.flatnonzero(passed | (run["kind"] == Kind.LOST))
            if until_ns is not None and (run["time_ns"] > until_ns).any():
                rows = rows[rows < np.argmax(run["time_ns"] > until_ns)]
                self._ended = True
            for place in range(0, len(rows), CHUNK):
                part = rows[place : place + CHUNK]
                part = part[np.argsort(run["time_ns"][part], kind="stable")]
                yield take(run, part), facets[part]
            if filters.costly:
                yield take(run, rows[:0]), facets[:0]  # nothing to show, but a turn for others
            if self._ended:
                return

    @staticmethod
    def _appended(held: list[tuple[Segment, int]], start: int, filters: Filters) -> Iterator[tuple[Segment, int, int]]:
        for segment, begin, end in appended(held, start):
            for first, last in pieces(end - begin, filters):
                yield segment, begin + first, begin + last

    @contextmanager
    def _listening(self) -> Iterator[asyncio.Event]:
        news = asyncio.Event()
        self._store.listeners.add(news.set)
        try:
            yield news
        finally:
            self._store.listeners.discard(news.set)


class _Gap:
    """What one follower missed, told at most once per second."""

    def __init__(self, server: NodeRef, now: Now) -> None:
        self._server, self._now = server, now
        self._missed, self._first, self._told = 0, 0, 0

    def missed(self, events: int) -> None:
        """The store has thrown away rows before this follower saw them."""
        if not self._missed:
            self._first = self._now()
        self._missed += events

    @property
    def seconds(self) -> float | None:
        """How long a wait may take before something has to be told; None = for ever."""
        return GAP_SECONDS if self._missed else None

    def due(self) -> list[pb.GetFlowsResponse]:
        """The message to send now, if any."""
        now = self._now()
        if not self._missed or now - self._told < GAP_SECONDS * NANOSECONDS:
            return []
        lost = flow_pb2.LostEvent(source=flow_pb2.HUBBLE_RING_BUFFER, num_events_lost=self._missed)
        set_time(lost.first, self._first)
        set_time(lost.last, now)
        response = pb.GetFlowsResponse(node_name=self._server.absolute, lost_events=lost)
        set_time(response.time, now)
        self._missed, self._told = 0, now
        return [response]


async def _wait(news: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        return
