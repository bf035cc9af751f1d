"""A stream's dictionary numbers: translated, replaced, freed; hostile ones refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.flows.columns import TRACE, WIRE, Columns, zeros
from services.flows.dictionary import Dictionaries
from services.flows.entries import Decision, HttpRequest, NearestRule, Party, PolicyRef, ServiceRef
from services.flows.wire import WireError, get_columns, get_entry, put_columns, put_entry
from services.relay.ingest import StreamNumbers


def entry(number: int, name: str) -> pb.Entry:
    return pb.Entry(number=number, service=pb.Service(namespace="n", name=name))


def rows(*services: int) -> Columns:
    columns = {name: zeros(name, len(services)) for name in WIRE}
    columns["service"] = np.array(services, np.uint32)
    return columns


def test_two_streams_share_contents_and_not_numbers() -> None:
    dictionaries = Dictionaries()
    first, second = StreamNumbers(dictionaries), StreamNumbers(dictionaries)
    first.learn(entry(1, "a"))
    second.learn(entry(1, "b"))
    second.learn(entry(900, "a"))
    one, two = first.translate(rows(1, 0)), second.translate(rows(1, 900))
    assert one["service"].tolist() == [two["service"][1], 0]
    first.release()
    assert len(dictionaries.services) == 2
    second.release()
    assert len(dictionaries.services) == 0


@given(st.lists(st.tuples(st.integers(1, 70), st.integers(0, 5)), max_size=60))
def test_a_number_means_what_it_was_last_said_to_mean(steps: list[tuple[int, int]]) -> None:
    dictionaries = Dictionaries()
    stream = StreamNumbers(dictionaries)
    meanings: dict[int, str] = {}
    for number, name in steps:
        stream.learn(entry(number, str(name)))
        meanings[number] = str(name)
        translated = stream.translate(rows(*meanings))["service"].tolist()
        found = [dictionaries.services[stored] for stored in translated]
        assert [each.name for each in found if each] == list(meanings.values())
        assert len(dictionaries.services) == len(set(meanings.values()))
    stream.release()
    assert len(dictionaries.services) == 0


@pytest.mark.parametrize("number", [2, 63, 64, 1 << 20, (1 << 32) - 1])
def test_numbers_that_were_never_said_are_refused(number: int) -> None:
    stream = StreamNumbers(Dictionaries())
    stream.learn(entry(1, "a"))
    with pytest.raises(WireError, match="service"):
        stream.translate(rows(1, number))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("parties", Party(bytes(range(16)), 7, ("k8s:a=b",), "ns", "pod", "Deployment", "w", 5, "east")),
        ("decisions", Decision(True, (PolicyRef("NetworkPolicy", "ns", "p", "uid"), PolicyRef("X", "", "q")))),
        ("decisions", Decision(False, ())),
        ("decisions", Decision(False, (), NearestRule(PolicyRef("N", "ns", "p", "", "spec.ingress[0]", 7), ("port",)))),
        ("services", ServiceRef("", "")),
        ("requests", HttpRequest("GET", "/ü", 11, 400)),
        ("requests", HttpRequest("", "")),
    ],
)
def test_entries_survive_the_wire(name: str, content: Party | Decision | ServiceRef | HttpRequest) -> None:
    batch = pb.Batch()
    put_entry(batch, 3, content)
    again = pb.Batch.FromString(batch.SerializeToString())
    assert get_entry(again.entries[0]) == (name, 3, content)


def test_columns_survive_the_wire_and_zeros_stay_at_home() -> None:
    columns = {"time_ns": np.array([1, 2], np.int64), "kind": np.ones(2, np.uint8), "bytes": np.zeros(2, np.uint64)}
    batch = pb.Batch()
    put_columns(batch, columns)
    assert {column.id for column in batch.columns} == {pb.TIME_NS, pb.KIND}
    found = get_columns(pb.Batch.FromString(batch.SerializeToString()))
    assert set(found) == set(WIRE) - set(TRACE)
    assert found["time_ns"].tolist() == [1, 2]
    assert found["bytes"].tolist() == [0, 0]


def test_columns_of_a_later_version_are_ignored() -> None:
    batch = pb.Batch(rows=1, columns=[pb.Column(id=pb.KIND, values=b"\1")])
    batch.columns.add(id=99, values=b"whatever")  # type: ignore[arg-type]
    assert get_columns(batch)["kind"].tolist() == [1]
