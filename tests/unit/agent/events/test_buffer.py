"""The unacknowledged buffer: whatever happens, received + counted = emitted, and nothing is received twice."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.events.buffer import BATCH_BYTES, ROW_BYTES, SendBuffer
from services.agent.events.losses import LostMap, LostWatch
from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.flows.dictionary import Dictionaries
from services.flows.entries import Party


def batch(dictionaries: Dictionaries, rows: int, name: str = "p") -> dict[str, Any]:
    number = dictionaries.parties.intern(Party(bytes(16), pod=name))
    return {
        "time_ns": np.arange(rows, dtype=np.int64),
        "source": np.full(rows, number, np.uint32),
        "destination": np.full(rows, number, np.uint32),
    }


@pytest.fixture
def dictionaries() -> Dictionaries:
    return Dictionaries()


def test_batches_are_numbered_when_they_are_first_sent(dictionaries: Dictionaries) -> None:
    buffer = SendBuffer(dictionaries, 1 << 20)
    for rows in (1, 2, 3):
        buffer.add(batch(dictionaries, rows), 0)
    sent = [buffer.next() for _ in range(4)]
    assert [(each.sequence, each.rows) for each in sent if each] == [(1, 1), (2, 2), (3, 3)]
    assert buffer.acknowledge(2) == 3
    assert len(buffer) == 1
    assert buffer.rewind(2) == 0
    again = buffer.next()
    assert again is not None
    assert again.sequence == 3


def test_the_bound_takes_the_oldest_that_was_never_sent(dictionaries: Dictionaries) -> None:
    room = 3 * (BATCH_BYTES + 10 * ROW_BYTES)
    buffer = SendBuffer(dictionaries, room)
    for name in ("sent", "old", "new"):
        buffer.add(batch(dictionaries, 10, name), 0)
    assert buffer.next() is not None
    buffer.add(batch(dictionaries, 10, "newest"), 77)
    assert buffer.dropped_rows == 10
    assert buffer.bytes <= room
    rest = [each for each in (buffer.next(), buffer.next(), buffer.next()) if each]
    pods = [dictionaries.parties[int(each.columns["source"][0])].pod for each in rest]  # type: ignore[union-attr]
    assert pods == ["new", "newest"]
    assert [(loss.source, loss.events, loss.first_ns) for loss in rest[0].losses] == [(pb.AGENT_BUFFER, 10, 77)]


def test_losses_alone_are_sent_too_and_stay_with_their_batch(dictionaries: Dictionaries) -> None:
    buffer = SendBuffer(dictionaries, 1 << 20)
    buffer.lose(pb.KERNEL_RING, 1, 5, 100)
    buffer.lose(pb.KERNEL_RING, 1, 6, 200)
    first = buffer.next()
    assert first is not None
    assert [(each.cpu, each.events, each.first_ns, each.last_ns) for each in first.losses] == [(1, 11, 100, 200)]
    assert first.rows == 0
    buffer.rewind(0)
    assert buffer.next() is first
    assert buffer.next() is None


def test_what_waits_keeps_its_names(dictionaries: Dictionaries) -> None:
    buffer = SendBuffer(dictionaries, 1 << 20)
    buffer.add(batch(dictionaries, 1), 0)
    assert len(dictionaries.parties) == 1
    buffer.next()
    buffer.acknowledge(1)
    assert len(dictionaries.parties) == 0
    assert buffer.bytes == 0


STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30)),
    st.tuples(st.just("send"), st.just(0)),
    st.tuples(st.just("deliver"), st.just(0)),
    st.tuples(st.just("acknowledge"), st.just(0)),
    st.tuples(st.just("break"), st.booleans()),
    st.tuples(st.just("kernel"), st.integers(1, 9)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=80))
def test_received_plus_counted_is_emitted(steps: list[tuple[str, int]]) -> None:
    dictionaries = Dictionaries()
    buffer = SendBuffer(dictionaries, 6 * (BATCH_BYTES + 10 * ROW_BYTES))
    wire: list[Any] = []
    emitted = received = told = stored = 0

    def deliver() -> None:
        nonlocal received, told, stored
        if wire:
            message = wire.pop(0)
            if message.sequence > stored:
                assert message.sequence == stored + 1
                stored = message.sequence
                received += message.rows
                told += sum(loss.events for loss in message.losses)

    for step, value in [*steps, ("break", False), *itertools.repeat(("send", 0), 99), *([("deliver", 0)] * 99)]:
        match step:
            case "add":
                buffer.add(batch(dictionaries, value), 0)
                emitted += value
            case "kernel":
                buffer.lose(pb.KERNEL_RING, 0, value, 0)
                emitted += value
            case "send":
                message = buffer.next()
                if message is not None:
                    wire.append(message)
            case "deliver":
                deliver()
            case "acknowledge":
                buffer.acknowledge(stored)
            case _:
                wire.clear()
                buffer.rewind(stored)
    assert received + told == emitted
    buffer.acknowledge(stored)
    assert buffer.empty
    assert (len(buffer), buffer.bytes, len(dictionaries.parties)) == (0, 0, 0)


class FakeMap:
    def __init__(self) -> None:
        self.values = {1: (5, 0), 6: (0, 2)}

    def lookup(self, key: bytes) -> bytes | None:
        counts = self.values.get(int.from_bytes(key, "little"))
        return b"".join(count.to_bytes(8, "little") for count in counts) if counts else None


def test_kernel_counters_are_told_as_differences_per_cpu() -> None:
    fake = FakeMap()
    watch = LostWatch(LostMap(fake))
    assert dict(watch.news()) == {}
    fake.values = {1: (9, 1), 6: (1, 2)}
    assert dict(watch.news()) == {0: 5, 1: 1}
    assert dict(watch.news()) == {}
