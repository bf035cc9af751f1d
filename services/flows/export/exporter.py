"""One export: follows the store, writes a line per event. What cannot be written is counted, and told in the file.

Every flow that comes after the start and passes the filters is written, or counted: by the store's own gap (the reader
was overtaken), or as what the disk refused. Both stand in the file as LostEvents as soon as it can be written again.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.json_format import MessageToDict

import services
from services.common.errors import Invalid
from services.common.log import get_logger
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2 as pb
from services.flows.entries import NodeRef
from services.flows.export.rotation import RotatingFile
from services.flows.export.spec import ExportSpec
from services.flows.follow import Follower
from services.flows.render import Renderer, set_time
from services.flows.store import FlowStore

FLUSH_LINES = 256
FLUSH_SECONDS = 0.5

log = get_logger("export")


@dataclass(slots=True)
class Figures:
    """Flows `written`, `refused` by the disk, `missed` because the store had moved on; failed writes; the error."""

    written: int = 0
    refused: int = 0
    missed: int = 0
    failures: int = 0
    error: str = ""


@dataclass(slots=True)
class _Lines:
    """What waits to be written: the flows in it, and the events that it stands for (a LostEvent: those it tells of)."""

    texts: list[bytes] = field(default_factory=list)
    flows: int = 0
    events: int = 0

    def add(self, event: pb.GetFlowsResponse) -> None:
        """One more line."""
        lost = event.WhichOneof("response_types") == "lost_events"
        self.texts.append(line(event))
        self.flows += not lost
        self.events += event.lost_events.num_events_lost if lost else 1


class Exporter:
    """`run` exports until cancelled, or until the export's end."""

    def __init__(
        self, spec: ExportSpec, store: FlowStore, server: NodeRef, now: Callable[[], int] = time.time_ns
    ) -> None:
        """Opens the file; raises `Invalid`."""
        self.spec, self._store, self._server, self._now = spec, store, server, now
        self._filters, self._mask = spec.filters(), spec.mask()
        try:
            self._file = RotatingFile(
                Path(spec.path),
                max_bytes=spec.max_bytes,
                max_age_s=spec.max_age_s,
                max_backups=spec.max_backups,
                compress=spec.compress,
            )
        except Invalid as error:
            raise Invalid(f"{spec.name}: filePath: {error}") from error
        self._mark = store.mark
        self._waiting = _Lines()
        self._writing = asyncio.Lock()
        self._untold = 0
        self._untold_since = 0
        self.figures = Figures()

    async def run(self) -> None:
        """Follow and write."""
        ticking = asyncio.create_task(self._tick())
        renderer = Renderer(self._store.dictionaries, services.__version__, self._mask)
        follower = Follower(self._store, self._server, self._mark, self._now)
        try:
            async for event in follower.run(renderer, self._filters, self.spec.end_ns):
                if event.lost_events.source == flow_pb2.HUBBLE_RING_BUFFER:
                    self.figures.missed += event.lost_events.num_events_lost
                self._waiting.add(event)
                if len(self._waiting.texts) >= FLUSH_LINES:
                    await self.flush()
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            await self.flush()
            await asyncio.to_thread(self._file.close)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write what waits, or count it."""
        async with self._writing:
            waiting, self._waiting = self._waiting, _Lines()
            told = self._untold
            texts = [self._gap(told), *waiting.texts] if told else waiting.texts
            if not texts:
                return
            try:
                await asyncio.to_thread(self._file.write, b"".join(texts))
            except OSError as error:
                self._failed(error, waiting)
                return
            if told:
                log.info("export goes on", export=self.spec.name, lost=told)
            self.figures.written += waiting.flows
            self._untold, self.figures.error = 0, ""

    def _failed(self, error: OSError, waiting: _Lines) -> None:
        text = f"{self.spec.path}: {os.strerror(error.errno or errno.EIO)}"
        if not self.figures.error:
            log.warning("export cannot write", export=self.spec.name, error=text)
        self._untold_since = self._untold_since if self._untold else self._now()
        self._untold += waiting.events
        self.figures.refused += waiting.flows
        self.figures.failures += 1
        self.figures.error = text

    def _gap(self, events: int) -> bytes:
        """The line about what could not be written."""
        lost = flow_pb2.LostEvent(source=flow_pb2.OBSERVER_EVENTS_QUEUE, num_events_lost=events)
        set_time(lost.first, self._untold_since)
        now = self._now()
        set_time(lost.last, now)
        event = pb.GetFlowsResponse(node_name=self._server.absolute, lost_events=lost)
        set_time(event.time, now)
        return line(event)


def line(event: pb.GetFlowsResponse) -> bytes:
    """A line of the file. `ExportEvent` has the same fields as the answer of `GetFlows`."""
    document = MessageToDict(event, preserving_proto_field_name=True)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
