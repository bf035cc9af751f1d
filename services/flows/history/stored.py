"""A segment that lies on disk, for readers the same as one in memory.

Opening it gives its entries numbers of the store's own dictionaries, so filters, which remember what they decided per
number, and the renderer see no difference. Columns are read when somebody looks at them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from services.flows.columns import DICTIONARY_OF, STORED, Array, Columns
from services.flows.dictionary import Dictionaries, Uses
from services.flows.entries import NodeRef
from services.flows.history.files import SegmentFile
from services.flows.wire import Content


class BrokenFile(ValueError):
    """A history file that is not what we wrote."""


class FileReader(Protocol):
    """An open file (`table.Reader`; this module knows nothing of Parquet, so that agents need not load it)."""

    rows: int
    entries: Sequence[tuple[str, int, Content]]
    nodes: Mapping[int, NodeRef]

    def read(self, names: list[str]) -> Columns:
        """The file's columns of these names."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


Open = Callable[[Path], FileReader]


class StoredSegment:
    """A history file, opened when the first query reads it and closed when the last one is done with it."""

    def __init__(self, file: SegmentFile, dictionaries: Dictionaries, open_file: Open) -> None:
        self.file, self.rows, self._open = file, file.rows, open_file
        self.min_time, self.max_time = file.first_ns, file.last_ns
        self.columns: Columns = {}
        self.pins = 0
        self._dictionaries = dictionaries
        self._reader: FileReader | None = None
        self._uses = Uses(dictionaries)
        self._nodes = np.zeros(0, np.int64)
        self._numbers: dict[str, Array] = {}

    async def prepare(self, names: Iterable[str]) -> None:
        """Open the file and read columns ahead, both in another thread. Raises `BrokenFile`."""
        if self._reader is None:
            reader = await asyncio.to_thread(self._open, self.file.path)
            if self._reader is None:  # another query was quicker
                self._reader = reader
                self.rows = reader.rows
                self._learn(reader)
                self.columns = LazyColumns(self)
            else:
                reader.close()
        missing = [name for name in names if name not in self.columns]
        if missing:
            self.columns.update(await asyncio.to_thread(self.read, missing))

    def view(self, rows: int) -> Columns:
        """All columns; `rows` is the file's own count."""
        return self.columns

    def read(self, names: list[str]) -> Columns:
        """Columns with the store's numbers. Raises `BrokenFile`."""
        assert self._reader is not None, "a segment is read after it was prepared"
        found = self._reader.read(names)
        try:
            return {name: self._translated(name, values) for name, values in found.items()}
        except IndexError as error:
            raise BrokenFile(f"{self.file.path}: a row names an entry that the file does not have") from error

    def _translated(self, name: str, values: Array) -> Array:
        dictionary = "nodes" if name == "node" else DICTIONARY_OF.get(name)
        numbers: Array = values if dictionary is None else self._numbers[dictionary][values]
        return numbers

    def _learn(self, reader: FileReader) -> None:
        """The file's numbers -> the store's, held until `close`."""
        learnt: dict[str, dict[int, int]] = {name: {} for name in set(DICTIONARY_OF.values())}
        for name, number, content in reader.entries:
            learnt[name][number] = self._dictionaries.of(name).intern(content)  # type: ignore[arg-type]
        for name, numbers in learnt.items():
            self._uses.add(name, np.array(list(numbers.values()), np.int64))
        nodes = {number: self._dictionaries.nodes.intern(ref) for number, ref in reader.nodes.items()}
        self._nodes = np.array(sorted(set(nodes.values())), np.int64)
        self._dictionaries.nodes.retain(self._nodes)
        self._numbers = {name: _table(numbers) for name, numbers in learnt.items()} | {"nodes": _table(nodes)}

    def rest(self) -> None:
        """Nobody reads it now: columns are let go, entries stay known."""
        self.columns.clear()

    def close(self) -> None:
        """Nobody reads it any more: its numbers may be given to others."""
        if self._reader is None:
            return
        self._uses.release()
        self._dictionaries.nodes.release(self._nodes)
        self._reader.close()
        self._reader, self.columns = None, {}


class LazyColumns(Columns):
    """The columns of a stored segment: what was read; looking at another one reads it."""

    def __init__(self, segment: StoredSegment) -> None:
        super().__init__()
        self._segment = segment

    def __missing__(self, name: str) -> Array:
        if name not in STORED:
            raise KeyError(name)
        self.update(self._segment.read([name]))
        return self[name]


def _table(numbers: dict[int, int]) -> Array:
    table = np.zeros(max(numbers, default=0) + 1, np.uint32)
    for number, mine in numbers.items():
        table[number] = mine
    return table
