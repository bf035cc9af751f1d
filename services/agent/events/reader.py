"""Reads a BPF ring buffer without system calls: the map is mapped into memory, a batch is one numpy array.

The map's pages: the consumer position (read-write), the producer position (read-only), then the data twice in a row,
so that a record never wraps. Every record has 8 bytes of header: length with BUSY and DISCARD bits, page offset.
A ring holds one record size, so pending records are one strided array.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

from services.agent.abi.events import RING_BUSY, RING_DISCARD
from services.flows.columns import Array

HEADER_BYTES = 8
PAGE = mmap.PAGESIZE


class RingLayoutError(RuntimeError):
    """The ring holds records of another size: the datapath and the agent do not belong together."""


class RingReader:
    """One ring. `read` gives copies of whole records in the order the kernel reserved them."""

    wakes = True
    """Whether the kernel calls when it fills up."""

    def __init__(self, map_fd: int, record: np.dtype[Any], size: int) -> None:
        """`size` is the map's `max_entries`: bytes of the data area, a power of two."""
        if size <= 0 or size & (size - 1) or size % PAGE:
            raise RingLayoutError(f"ring of {size} bytes: must be a power of two and whole pages")
        self.fd, self.size = map_fd, size
        self._stride = HEADER_BYTES + record.itemsize
        if self._stride % 8:
            raise RingLayoutError(f"records of {record.itemsize} bytes are not 8-byte aligned in a ring")
        self._framed = np.dtype([("length", "<u4"), ("page", "<u4"), ("record", record)])
        self._record_bytes = record.itemsize
        self._consumer_page = mmap.mmap(map_fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(map_fd, PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        # One aligned 8-byte store each: the kernel never sees half a position.
        self._consumer = ctypes.c_uint64.from_buffer(self._consumer_page)
        self._producer = np.frombuffer(self._data, np.uint64, 1)
        self.discarded = 0
        """Records the kernel reserved and then gave up: they were never meant to be seen."""

    @classmethod
    def open(cls, map_fd: int, record: np.dtype[Any]) -> RingReader:
        """A reader for a map whose size is asked from the kernel; raises `RingLayoutError`, `OSError`."""
        with open(f"/proc/self/fdinfo/{map_fd}", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file if ":" in line)
        if "max_entries" not in facts:
            raise RingLayoutError(f"descriptor {map_fd} is no BPF map")
        return cls(map_fd, record, int(facts["max_entries"]))

    @property
    def pending(self) -> int:
        """Bytes between the consumer and the producer."""
        return int(self._producer[0]) - self._consumer.value

    @property
    def fill(self) -> float:
        """Share of the ring in use."""
        return self.pending / self.size

    def read(self, limit: int) -> Array:
        """Up to `limit` records; empty where none is complete. Raises `RingLayoutError`."""
        position = self._consumer.value
        available = min((int(self._producer[0]) - position) // self._stride, limit)
        if available <= 0:
            return np.zeros(0, self._framed["record"])
        start = PAGE + position % self.size
        lengths = np.frombuffer(self._data, self._framed, available, offset=start)["length"]
        if (lengths == self._record_bytes).all():
            # One copy of all bytes, headers included: field by field would take five times as long.
            raw = np.frombuffer(self._data, np.uint8, available * self._stride, offset=start).copy()
            records: Array = raw.view(self._framed)["record"]
            taken = available
        else:
            records, taken = self._irregular(np.frombuffer(self._data, self._framed, available, offset=start))
        self._consumer.value = position + taken * self._stride
        return records

    def _irregular(self, framed: Array) -> tuple[Array, int]:
        """The whole records before the first unfinished one, without discarded ones; how many were passed."""
        lengths = framed["length"].copy()
        busy = np.flatnonzero(lengths & RING_BUSY)
        if len(busy):
            framed, lengths = framed[: busy[0]], lengths[: busy[0]]
        sizes = lengths & ~np.uint32(RING_DISCARD)
        wrong = sizes[sizes != self._record_bytes]
        if len(wrong):
            raise RingLayoutError(
                f"ring of {self._record_bytes}-byte records holds one of {int(wrong[0])} bytes: "
                "the loaded datapath is of another version than this agent"
            )
        records = framed["record"][lengths & RING_DISCARD == 0]
        self.discarded += len(framed) - len(records)
        return records, len(framed)

    def close(self) -> None:
        """Unmap; the descriptor stays the caller's."""
        del self._producer, self._consumer
        self._data.close()
        self._consumer_page.close()
