"""Lanes of connection events: every record once, in order, whatever the lanes hold; a full lane loses nothing old."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from services.agent.abi.events import EVENT_LANE, FLOW_EVENT, lane_heads, lane_places
from services.agent.events import lanes
from services.agent.events.lanes import LaneReader
from services.agent.events.reader import RingLayoutError

CPUS, PLACES = 3, 256
ENTRIES = CPUS * (2 + PLACES)


class Kernel:
    """The writing side, as `flow_event_reserve` and `flow_event_submit` do it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("lanes")
        os.ftruncate(self.fd, -(-ENTRIES * FLOW_EVENT.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE)
        self.pages = mmap.mmap(self.fd, 0)
        self.records = np.frombuffer(self.pages, FLOW_EVENT, ENTRIES)
        self.heads = np.frombuffer(self.pages, EVENT_LANE, ENTRIES)
        for index, head in lane_heads(PLACES, CPUS).items():
            self.heads[index] = np.frombuffer(head, EVENT_LANE)[0]
        self.lost = 0

    def write(self, cpu: int, time_ns: int) -> None:
        head = self.heads[2 * cpu]
        waiting = int(head["written"]) - int(head["taken"])
        if waiting > int(head["mask"]):
            self.lost += 1
            return
        if not waiting:
            head["base"] = head["written"]
        record = self.records[int(head["first"]) + (int(head["written"]) - int(head["base"]) & int(head["mask"]))]
        record["cpu"], record["time_ns"] = cpu, time_ns
        head["written"] += 1

    def close(self) -> None:
        del self.records, self.heads
        self.pages.close()
        os.close(self.fd)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


@pytest.fixture
def reader(kernel: Kernel) -> Iterator[LaneReader]:
    opened = LaneReader(kernel.fd, FLOW_EVENT, ENTRIES)
    yield opened
    opened.close()


def times(reader: LaneReader, limit: int = 10_000) -> list[int]:
    return [int(time) for time in reader.read(limit)["time_ns"]]


def test_records_come_out_once_and_in_order(kernel: Kernel, reader: LaneReader) -> None:
    rng = np.random.default_rng(7)
    told: list[int] = []
    clock = 0
    for _ in range(60):
        for _ in range(int(rng.integers(0, 40))):
            clock += 1
            kernel.write(int(rng.integers(0, CPUS)), clock)
        told += times(reader)
    assert told == list(range(1, clock + 1))
    assert (kernel.lost, reader.pending, reader.fill) == (0, 0, 0.0)


def test_a_full_lane_keeps_what_it_has(kernel: Kernel, reader: LaneReader) -> None:
    for number in range(PLACES + 10):
        kernel.write(1, number)
    assert (kernel.lost, reader.fill) == (10, 1.0)
    assert times(reader) == list(range(PLACES))
    kernel.write(1, 999)
    assert times(reader) == [999]


def test_an_empty_lane_starts_again_and_a_busy_one_uses_all_of_its_places(kernel: Kernel, reader: LaneReader) -> None:
    for number in range(PLACES // 2):
        kernel.write(1, number)
        assert times(reader) == [number]
    first = int(kernel.heads[2]["first"])
    assert np.flatnonzero(kernel.records["cpu"][first : first + PLACES]).tolist() == [0], "always the same place"
    kernel.write(1, 999)
    for number in range(1000, 1000 + 2 * PLACES):  # never empty: it goes round
        kernel.write(1, number)
        assert times(reader, 1) == [number - 1]
    assert np.flatnonzero(kernel.records["cpu"][first : first + PLACES]).tolist() == list(range(PLACES))
    assert times(reader) == [999 + 2 * PLACES]
    for number in range(PLACES + 5):
        kernel.write(1, 9000 + number)
    assert kernel.lost == 5
    assert times(reader, 100) + times(reader) == list(range(9000, 9000 + PLACES))


def test_a_limit_leaves_the_rest_and_no_lane_waits_for_ever(kernel: Kernel, reader: LaneReader) -> None:
    for number in range(100):
        for cpu in range(CPUS):
            kernel.write(cpu, number * CPUS + cpu)
    seen = [set(reader.read(50)["cpu"].tolist()) for _ in range(CPUS)]
    assert set.union(*seen) == {0, 1, 2}
    assert reader.pending == (100 * CPUS - 150) * FLOW_EVENT.itemsize


def test_what_is_read_stays_when_the_lane_is_written_over(kernel: Kernel, reader: LaneReader) -> None:
    kernel.write(0, 5)
    record = reader.read(10)
    for number in range(PLACES):
        kernel.write(0, 1000 + number)
    assert record["time_ns"].tolist() == [5]


def test_another_reader_goes_on_where_the_last_one_stopped(kernel: Kernel, reader: LaneReader) -> None:
    kernel.write(0, 1)
    assert times(reader) == [1]
    kernel.write(0, 2)
    second = LaneReader(kernel.fd, FLOW_EVENT, ENTRIES)
    assert times(second) == [2]
    second.close()


def test_where_stores_may_be_seen_out_of_order_a_record_waits_for_the_next_look(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "IN_ORDER", False)
    reader = LaneReader(kernel.fd, FLOW_EVENT, ENTRIES)
    kernel.write(0, 1)
    assert times(reader) == []
    kernel.write(0, 2)
    assert times(reader) == [1]
    assert times(reader) == [2]
    reader.close()


def test_a_map_without_lanes_is_refused(kernel: Kernel) -> None:
    with pytest.raises(RingLayoutError, match="another size"):
        LaneReader(kernel.fd, FLOW_EVENT, ENTRIES - 1)
    kernel.heads[0]["mask"] = 0
    with pytest.raises(RingLayoutError, match="no lanes"):
        LaneReader(kernel.fd, FLOW_EVENT, ENTRIES)


def test_lanes_share_the_buffer() -> None:
    assert lane_places(8 << 20, 2) == 32_768
    assert lane_places(1 << 20, 128) == 256, "never fewer"
