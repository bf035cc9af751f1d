"""`/api/v1`: status, filters, the map and the flows, as JSON and as Server-Sent Events.

Errors are `{"error": {"code", "message", "field"}}` with the HTTP status that goes with the code.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from aiohttp import web

from services.common.errors import Exhausted
from services.flows.columns import Columns, take
from services.flows.flags import FLAGS
from services.flows.follow import Archive
from services.flows.observer import Nodes
from services.flows.select import appended
from services.flows.store import FlowStore
from services.relay.web.graph import COLUMNS, Graph
from services.relay.web.groups import By
from services.relay.web.params import NANOSECONDS, Query, parse
from services.relay.web.rows import FlowWriter
from services.relay.web.scan import Scanner

MAX_STREAMS = 64
"""Pages that are told what happens; further ones are refused."""
TICK_S = 0.5
MAP_S = 2.0
"""Seconds between two maps in a stream, and how many times as long as making one takes there are at least."""
MAP_SHARE = 10
ALIVE_S = 15.0
"""Seconds after which a stream without news says that it is alive."""
MAX_NEW = 100
"""Flows told per tick; a person reads fewer. Those beyond are counted."""
CHUNK = 256

Now = Callable[[], int]


class Api:
    """The handlers. `oldest_ns`: of the history; `lost`: events lost so far."""

    def __init__(
        self,
        store: FlowStore,
        archive: Archive,
        nodes: Nodes,
        version: str,
        oldest_ns: Callable[[], int | None],
        now: Now = time.time_ns,
    ) -> None:
        self._store, self._nodes, self._version = store, nodes, version
        self._oldest_ns, self._now = oldest_ns, now
        self._scanner = Scanner(store, archive)
        self._streams = 0

    def routes(self) -> list[web.RouteDef]:
        """What the server answers."""
        return [
            web.get("/api/v1/status", self.status),
            web.get("/api/v1/filters", self.filters),
            web.get("/api/v1/graph", self.graph),
            web.get("/api/v1/graph/stream", self.graph_stream),
            web.get("/api/v1/flows", self.flows),
            web.get("/api/v1/flows/stream", self.flows_stream),
        ]

    async def status(self, request: web.Request) -> web.Response:
        """How much is held, since when, and by whom it is told."""
        return _json(self._status())

    def _status(self) -> dict[str, Any]:
        now = self._now()
        statuses = self._nodes.statuses()
        times = [segment.min_time for segment in self._store.segments if segment.rows]
        oldest = self._oldest_ns()
        if oldest is not None:
            times.append(oldest)
        return {
            "version": self._version,
            "now": now / NANOSECONDS,
            "flows": self._store.flows,
            "capacity": self._store.capacity,
            "seen": self._store.seen,
            "rate": self._store.rate(now),
            "oldest": min(times) / NANOSECONDS if times else None,
            "nodes": [{"name": each.node.absolute, "connected": each.connected} for each in statuses],
        }

    async def filters(self, request: web.Request) -> web.Response:
        """The filters that queries take, as the command line has them."""
        known = [{"name": flag.name, "help": flag.help, "side": flag.side.name.lower()} for flag in FLAGS]
        return _json({"filters": known, "by": list(By), "exclude": "not."})

    async def graph(self, request: web.Request) -> web.Response:
        """The map of a time range."""
        return _json(await self._map(parse(request.query.items())))

    async def _map(self, query: Query) -> dict[str, Any]:
        since_ns, until_ns = query.span(self._now())
        graph = Graph(since_ns, until_ns, self._store.dictionaries)
        with self._scanner.pinned() as held:
            async for run in self._scanner.runs(held, query, since_ns, until_ns, COLUMNS):
                table, ids = self._scanner.names.of(query.by, self._store.dictionaries)
                graph.add(run, table, ids)
        return graph.answer()

    async def flows(self, request: web.Request) -> web.Response:
        """The newest flows of a time range, oldest first."""
        query = parse(request.query.items())
        writer = FlowWriter(self._store.dictionaries, self._version, query.by)
        found: list[dict[str, Any]] = []
        position = self._store.end
        with self._scanner.pinned() as held:
            selection = await self._scanner.newest(held, query, self._now())
            for columns, facets in selection.chunks(CHUNK):
                found += writer.write(columns, facets)
                await asyncio.sleep(0)
        return _json({"flows": found, "limit": query.limit, "position": position})

    async def graph_stream(self, request: web.Request) -> web.StreamResponse:
        """`graph`, `status` events: now and whenever flows came since."""
        query = parse(request.query.items())

        async def events() -> AsyncIterator[tuple[str, Any]]:
            while True:
                seen, started = self._store.end, time.monotonic()
                yield "graph", await self._map(query)
                yield "status", self._status()
                took = time.monotonic() - started
                await asyncio.sleep(max(MAP_S, took * MAP_SHARE))
                if self._store.end == seen:
                    await self._news(seen)

        return await self._stream(request, events())

    async def flows_stream(self, request: web.Request) -> web.StreamResponse:
        """`flows` events: what is stored from now or a `position` on, `skipped` counting what no person could read.

        An event's id is where the next one begins: a browser that comes back names it, and nothing is left out.
        """
        query = parse(request.query.items())
        last = request.headers.get("Last-Event-ID", "")
        position = int(last) if last.isdecimal() and len(last) < 19 else query.position
        return await self._stream(request, self._follow(query, position))

    async def _follow(self, query: Query, position: int | None) -> AsyncIterator[tuple[str, Any]]:
        writer = FlowWriter(self._store.dictionaries, self._version, query.by)
        cursor = self._store.end if position is None else min(position, self._store.end)
        while True:
            await self._news(cursor)
            missed = max(0, self._store.first - cursor)
            cursor, start = self._store.end, max(cursor, self._store.first)
            found, skipped = self._appended(query, writer, start)
            if found or skipped or missed:
                yield "flows", {"flows": found, "skipped": skipped, "missed": missed, "position": cursor}
            else:
                yield "", None
            await asyncio.sleep(TICK_S)

    def _appended(self, query: Query, writer: FlowWriter, start: int) -> tuple[list[dict[str, Any]], int]:
        """(the newest rows from a position on, how many more there were)."""
        parts: list[tuple[Columns, Any]] = []
        total = 0
        with self._store.pinned() as held:
            for segment, begin, end in appended(held, start):
                run = self._scanner.match(
                    {name: values[begin:end] for name, values in segment.columns.items()}, query, 0, 1 << 62
                )
                total += len(run.index)
                newest = run.index[-MAX_NEW:]
                parts.append((take(run.columns, newest), run.facets[newest]))
            found = [row for columns, facets in parts for row in writer.write(columns, facets)]
        found = sorted(found, key=lambda row: row["time"])[-MAX_NEW:]
        return found, total - len(found)

    async def _news(self, position: int) -> None:
        """Returns once something was appended past a position, or after a while."""
        news = asyncio.Event()
        self._store.listeners.add(news.set)
        try:
            if self._store.end == position:
                async with asyncio.timeout(ALIVE_S):
                    await news.wait()
        except TimeoutError:
            return
        finally:
            self._store.listeners.discard(news.set)

    async def _stream(self, request: web.Request, events: AsyncIterator[tuple[str, Any]]) -> web.StreamResponse:
        with self._slot():
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
            await response.prepare(request)
            try:
                async for name, content in events:
                    await response.write(_event(name, content))
            except ConnectionResetError:
                pass  # the page is gone
            finally:
                await events.aclose()  # type: ignore[attr-defined]
            return response

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._streams >= MAX_STREAMS:
            raise Exhausted(f"{MAX_STREAMS} pages are open already; close one, or try again later")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def _event(name: str, content: Any) -> bytes:
    if not name:
        return b": alive\n\n"
    place = f"id: {content['position']}\n" if "position" in content else ""
    return f"{place}event: {name}\ndata: {_text(content)}\n\n".encode()


def _json(content: Any) -> web.Response:
    response = web.Response(text=_text(content), content_type="application/json", headers={"Cache-Control": "no-store"})
    response.enable_compression()
    return response


def _text(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), default=_number)


def _number(value: Any) -> Any:
    """numpy's numbers."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not for JSON")
