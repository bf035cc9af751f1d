"""The ring reader on memory that is laid out like a ring: unfinished, discarded, foreign records, the wrap."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from services.agent.abi.events import FLOW_EVENT, RING_BUSY, RING_DISCARD
from services.agent.events.reader import RingLayoutError, RingReader

SIZE = 4096
STRIDE = 8 + FLOW_EVENT.itemsize


class MemoryRing:
    """The kernel's side, in a memory file: two position pages, then the data twice."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.memory = mmap.mmap(self.fd, 0)
        self.producer = 0

    def write(self, number: int, flags: int = 0, length: int = FLOW_EVENT.itemsize) -> None:
        record = np.zeros(1, FLOW_EVENT)
        record["rule_id"] = number
        raw = struct.pack("<II", length | flags, 0) + record.tobytes()
        for place, byte in enumerate(raw):
            offset = (self.producer + place) % SIZE
            for copy in (0, SIZE):
                self.memory[2 * mmap.PAGESIZE + copy + offset] = byte
        self.producer += len(raw)
        self.memory[mmap.PAGESIZE : mmap.PAGESIZE + 8] = struct.pack("<Q", self.producer)

    def finish(self, place: int) -> None:
        """Clear the BUSY bit of the record at a position."""
        for copy in (0, SIZE):
            start = 2 * mmap.PAGESIZE + copy + place % SIZE
            self.memory[start : start + 4] = struct.pack("<I", FLOW_EVENT.itemsize)


@pytest.fixture
def ring() -> Iterator[tuple[MemoryRing, RingReader]]:
    memory = MemoryRing()
    reader = RingReader(memory.fd, FLOW_EVENT, SIZE)
    yield memory, reader
    reader.close()
    os.close(memory.fd)


def numbers(reader: RingReader, limit: int = 100) -> list[int]:
    found: list[int] = reader.read(limit)["rule_id"].tolist()
    return found


def test_records_come_out_once_and_in_order_across_the_wrap(ring: tuple[MemoryRing, RingReader]) -> None:
    memory, reader = ring
    seen: list[int] = []
    for number in range(200):
        memory.write(number)
        if number % 7 == 0:
            seen += numbers(reader)
    assert seen + numbers(reader) == list(range(200))
    assert (reader.pending, numbers(reader)) == (0, [])


def test_a_limit_leaves_the_rest(ring: tuple[MemoryRing, RingReader]) -> None:
    memory, reader = ring
    for number in range(5):
        memory.write(number)
    assert (numbers(reader, 3), reader.pending, numbers(reader)) == ([0, 1, 2], 2 * STRIDE, [3, 4])


def test_it_stops_before_a_record_that_is_being_written(ring: tuple[MemoryRing, RingReader]) -> None:
    memory, reader = ring
    memory.write(1)
    memory.write(2, RING_BUSY)
    memory.write(3)
    assert numbers(reader) == [1]
    assert numbers(reader) == []
    memory.finish(STRIDE)
    assert numbers(reader) == [2, 3]


def test_discarded_records_are_passed_over(ring: tuple[MemoryRing, RingReader]) -> None:
    memory, reader = ring
    memory.write(1)
    memory.write(2, RING_DISCARD)
    memory.write(3)
    assert (numbers(reader), reader.discarded, reader.pending) == ([1, 3], 1, 0)


def test_records_of_another_layout_are_refused(ring: tuple[MemoryRing, RingReader]) -> None:
    memory, reader = ring
    memory.write(1, length=FLOW_EVENT.itemsize - 8)
    with pytest.raises(RingLayoutError, match="another version"):
        reader.read(10)


def test_what_is_read_stays_when_the_ring_is_written_over(ring: tuple[MemoryRing, RingReader]) -> None:
    memory, reader = ring
    memory.write(1)
    kept = reader.read(10)
    for number in range(100, 200):
        memory.write(number)
        reader.read(10)
    assert kept["rule_id"].tolist() == [1]


@pytest.mark.parametrize("size", [0, 5000, 3 * 4096])
def test_sizes_that_no_ring_has(size: int) -> None:
    with pytest.raises(RingLayoutError):
        RingReader(-1, FLOW_EVENT, size)
