"""All that a store wrote to disk, by this process and by earlier ones."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import Unavailable
from services.common.log import get_logger
from services.flows.columns import DICTIONARY_OF
from services.flows.dictionary import distinct
from services.flows.history import files
from services.flows.history.stored import BrokenFile, StoredSegment
from services.flows.history.table import Reader, Snapshot, encode, save
from services.flows.store import FlowStore, Segment

log = get_logger("history")

MAX_OPEN = 256
"""Files whose entries stay known between queries: reading them anew costs more than the columns."""


@dataclass(slots=True)
class Figures:
    """What became of the rows, for metrics. `unwritten`: thrown out of memory before a file had them."""

    rows: int = 0
    files: int = 0
    bytes: int = 0
    unwritten: int = 0
    failures: int = 0
    broken: int = 0
    expired: int = 0


class History:
    """Writes a store's segments to a folder and offers those that memory does not hold any more to readers."""

    def __init__(
        self,
        folder: Path,
        store: FlowStore,
        *,
        max_bytes: int,
        max_age_s: float,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """Raises `Unavailable` where the folder cannot be used."""
        self._folder, self._store, self._now = folder, store, now
        self._max_bytes, self._max_age_ns = max_bytes, int(max_age_s * 1e9)
        self._epoch = now()
        self._claim = files.claim(folder)
        self._files = {each.segment: each for each in files.listing(folder)}
        self._open: dict[files.SegmentFile, StoredSegment] = {}
        self._written = 0
        """Position up to which every row is on disk, or counted as unwritten."""
        self.figures = Figures()
        self._measure()

    def close(self) -> None:
        """Let others have the folder."""
        self._trim(0)
        os.close(self._claim)

    async def run(self, flush_s: float) -> None:
        """Write what is new, every `flush_s` seconds, until cancelled. Failures are counted and tried again."""
        while True:
            await asyncio.sleep(flush_s)
            await self.flush()

    async def flush(self) -> None:
        """Write what is new, and make room."""
        if self._store.first > self._written:
            self.figures.unwritten += self._store.first - self._written
            self._written = self._store.first
        try:
            for segment in [each for each in self._store.segments if each.base + each.rows > self._written]:
                await self._write(segment)
            await self._expire()
        except OSError as error:
            self.figures.failures += 1
            log.warning("flow history not written", folder=str(self._folder), error=os.strerror(error.errno or 0))
        self._measure()

    async def _write(self, segment: Segment) -> None:
        found = snapshot(self._store, segment)
        first, last = int(found.columns["time_ns"].min()), int(found.columns["time_ns"].max())
        name = files.name_of(first, last, self._epoch, segment.base, found.rows)
        written = await asyncio.to_thread(files.write, self._folder, name, lambda path: save(encode(found), path))
        before = self._files.get(written.segment)
        self._files[written.segment] = written
        self._written = segment.base + found.rows
        if before is not None and before.path != written.path:
            before.path.unlink(missing_ok=True)

    async def _expire(self) -> None:
        before = self._now() - self._max_age_ns
        gone = files.expired(self._files.values(), max_bytes=self._max_bytes, before_ns=before)
        for each in gone:
            del self._files[each.segment]
            if each in self._open and not self._open[each].pins:
                self._open.pop(each).close()
            each.path.unlink(missing_ok=True)
        self.figures.expired += len(gone)

    def _measure(self) -> None:
        present = self._files.values()
        self.figures.files, self.figures.rows = len(present), sum(each.rows for each in present)
        self.figures.bytes = sum(each.size for each in present)

    @property
    def oldest_ns(self) -> int | None:
        """Time of the oldest row on disk."""
        return min((each.first_ns for each in self._files.values()), default=None)

    @contextmanager
    def pinned(self) -> Iterator[list[tuple[StoredSegment, int]]]:
        """(segment, rows) of what is on disk only, oldest first; they stay readable while the context is open."""
        wanted = [each for each in files.ordered(self._files.values()) if not self._in_memory(each)]
        held = [self._open.setdefault(each, StoredSegment(each, self._store.dictionaries, Reader)) for each in wanted]
        for segment in held:
            segment.pins += 1
        try:
            yield [(segment, segment.rows) for segment in held]
        finally:
            for segment in held:
                segment.pins -= 1
                if not segment.pins:
                    segment.rest()
                    self._open[segment.file] = self._open.pop(segment.file)  # the last one used
            self._trim(MAX_OPEN)

    def _trim(self, most: int) -> None:
        """Close what was not read for longest: its entries' numbers may be given to others."""
        idle = [segment for segment in self._open.values() if not segment.pins]
        for segment in idle[: max(0, len(idle) - most)]:
            del self._open[segment.file]
            segment.close()

    def _in_memory(self, each: files.SegmentFile) -> bool:
        return each.epoch == self._epoch and each.base >= self._store.first

    def set_aside(self, segment: StoredSegment, error: BrokenFile) -> None:
        """A file turned out to be unreadable: queries go on without it, and people are told. Expired ones are none."""
        if self._files.get(segment.file.segment) != segment.file:
            return
        del self._files[segment.file.segment]
        self.figures.broken += 1
        log.warning("flow history file set aside", file=segment.file.path.name, error=str(error))
        try:
            files.set_aside(segment.file)
        except OSError as problem:
            log.warning("not renamed", file=segment.file.path.name, error=os.strerror(problem.errno or 0))
        self._measure()


def snapshot(store: FlowStore, segment: Segment) -> Snapshot:
    """The rows of a segment as they are now, and what their numbers mean."""
    columns = segment.view(segment.rows)
    entries = {
        name: {
            int(number): content
            for number in segment.uses.held(name)
            if (content := store.dictionaries.of(name)[int(number)]) is not None
        }
        for name in set(DICTIONARY_OF.values())
    }
    numbers = distinct(columns["node"], store.dictionaries.nodes.size).tolist()
    nodes = {number: ref for number in numbers if (ref := store.dictionaries.nodes[number]) is not None}
    return Snapshot(columns, entries, nodes)


def open_history(folder: str, store: FlowStore, *, max_mb: int, max_age_s: float) -> History | None:
    """The history in a folder; None where none is wanted. Raises `Unavailable`."""
    if not folder:
        return None
    if not Path(folder).is_absolute():
        raise Unavailable(f"history_dir: {folder!r} is no absolute path")
    return History(Path(folder), store, max_bytes=max_mb << 20, max_age_s=max_age_s)
