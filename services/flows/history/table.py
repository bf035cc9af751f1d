"""A segment as an Arrow table and back.

Two views in one file. For people and SQL: `time`, `verdict`, `source_pod`, ... as texts, dictionary-encoded, so that a
repeated name costs a few bits per row. For us: the store's own columns, `_source`, `_kind`, ... with the dictionary
entries in the file's metadata, as the messages that also travel (`ingest.v1`), read by the same validating code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.common.pb.ingest.v1 import ingest_pb2
from services.flows.columns import DICTIONARY_OF, STORED, Array, Columns, length
from services.flows.entries import NodeRef
from services.flows.history import words
from services.flows.history.stored import BrokenFile, FileReader
from services.flows.wire import Content, WireError, get_entry, put_entry

FORMAT = b"1"
FORMAT_KEY, ENTRIES_KEY, NODES_KEY = b"ciliate.format", b"ciliate.entries", b"ciliate.nodes"
COMPRESSION = "zstd"

TIME = "time"
OURS = (*DICTIONARY_OF, *words.ENUMS, "node", "trace_high", "trace_low", "parent_span")
"""Columns that are stored under `_name`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Rows with the entries that they name, independent of what the store does next."""

    columns: Columns
    entries: Mapping[str, Mapping[int, Content]]
    """Dictionary -> number -> content."""
    nodes: Mapping[int, NodeRef]

    @property
    def rows(self) -> int:
        return length(self.columns)


def encode(snapshot: Snapshot) -> pa.Table:
    """The table of a snapshot."""
    columns = snapshot.columns
    arrays: dict[str, Any] = {TIME: pa.array(columns["time_ns"]).cast(pa.timestamp("ns", "UTC"))}
    arrays |= words.columns(columns, snapshot.entries, snapshot.nodes)
    for name, kind in STORED.items():
        if name != "time_ns":
            arrays[f"_{name}" if name in OURS else name] = pa.array(columns[name].astype(kind, copy=False))
    batch = ingest_pb2.Batch()
    for contents in snapshot.entries.values():
        for number, content in contents.items():
            put_entry(batch, number, content)
    nodes = {str(number): [ref.name, ref.cluster, list(ref.labels)] for number, ref in snapshot.nodes.items()}
    return pa.table(arrays).replace_schema_metadata(
        {FORMAT_KEY: FORMAT, ENTRIES_KEY: batch.SerializeToString(), NODES_KEY: json.dumps(nodes).encode()}
    )


def save(table: pa.Table, path: Path) -> None:
    """Write the file; every page carries a checksum. Raises OSError."""
    pq.write_table(
        table,
        path,
        compression=COMPRESSION,
        use_dictionary=[field.name for field in table.schema if pa.types.is_dictionary(field.type)],
        column_encoding={TIME: "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
        store_schema=True,
    )


class Reader(FileReader):
    """One open file. Columns are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises `BrokenFile`."""
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True, memory_map=True)
            metadata = self._file.schema_arrow.metadata or {}
            if metadata.get(FORMAT_KEY) != FORMAT:
                raise BrokenFile(f"{path}: format {metadata.get(FORMAT_KEY)!r} is not {FORMAT!r}")
            batch = ingest_pb2.Batch.FromString(metadata[ENTRIES_KEY])
            self.entries = [get_entry(entry) for entry in batch.entries]
            self.nodes = {
                int(number): NodeRef(name, cluster, tuple(labels))
                for number, (name, cluster, labels) in json.loads(metadata[NODES_KEY]).items()
            }
        except (OSError, pa.ArrowException, KeyError, ValueError, WireError) as error:
            raise BrokenFile(f"{path}: {error}") from error
        self._present = frozenset(self._file.schema_arrow.names)
        self._path = path
        self.rows = int(self._file.metadata.num_rows)

    def read(self, names: list[str]) -> Columns:
        """The store's columns of these names; those that the file lacks are zeros. Raises `BrokenFile`."""
        stored = {name: TIME if name == "time_ns" else f"_{name}" if name in OURS else name for name in names}
        wanted = [column for column in stored.values() if column in self._present]
        try:
            table = self._file.read(columns=wanted, use_threads=False)
            found = {column: table.column(column) for column in wanted}
            return {
                name: _numbers(found[column], STORED[name]) if column in found else np.zeros(self.rows, STORED[name])
                for name, column in stored.items()
            }
        except (OSError, pa.ArrowException, ValueError) as error:
            raise BrokenFile(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _numbers(column: pa.ChunkedArray, kind: np.dtype[Any]) -> Array:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    values: Array = column.to_numpy().astype(kind, copy=False)
    return values
