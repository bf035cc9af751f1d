"""The bounded store and its dictionaries: nothing is forgotten that a row still names, and nothing else is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.flows.columns import STORED
from services.flows.dictionary import Dictionaries, Dictionary, Uses
from services.flows.entries import NodeRef, Party, ServiceRef
from services.flows.namespaces import Namespaces


def test_equal_contents_have_one_number_and_zero_is_none() -> None:
    names: Dictionary[str] = Dictionary()
    assert (names.intern("a"), names.intern("b"), names.intern("a")) == (1, 2, 1)
    assert (names[0], names[1], names[99]) == (None, "a", None)


def test_a_freed_number_is_used_again_and_its_generation_tells() -> None:
    names: Dictionary[str] = Dictionary()
    number = names.intern("a")
    names.retain(np.array([number]))
    before = int(names.generation[number])
    names.release(np.array([number]))
    assert names[number] is None
    assert names.intern("b") == number
    assert int(names.generation[number]) > before
    assert len(names) == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 40), min_size=1, max_size=8)), max_size=60))
def test_uses_never_free_what_somebody_holds(steps: list[tuple[int, list[int]]]) -> None:
    dictionaries = Dictionaries()
    holders: list[tuple[Uses, set[int]]] = [(Uses(dictionaries), set()) for _ in range(4)]
    for place, values in steps:
        uses, expected = holders[place]
        if values[0] % 5 == 0:
            uses.release()
            expected.clear()
            continue
        numbers = [dictionaries.services.intern(ServiceRef("n", str(value))) for value in values]
        uses.add("services", np.array(numbers))
        expected |= set(values)
    wanted = set().union(*(expected for _, expected in holders))
    assert {int(content.name) for _, content in dictionaries.services.contents()} == wanted
    for uses, expected in holders:
        held = [dictionaries.services[number] for number in uses.held("services").tolist()]
        assert {int(content.name) for content in held if content} == expected


def test_the_oldest_segments_go_and_their_names_with_them(new_flows: Any) -> None:
    flows = new_flows(1024)
    for number in range(3000):
        flows.add(source=flows.party(f"10.1.{number // 250}.{number % 250}", 1, pod=f"p{number}"))
    store = flows.store
    assert store.seen == 3000
    assert 768 <= store.flows <= 1024
    assert store.first == 3000 - store.flows
    assert len(store.dictionaries.parties) == store.flows + 1  # the sources, and one destination
    names = [
        store.dictionaries.parties[number].pod
        for segment in store.segments
        for number in segment.columns["source"][: segment.rows].tolist()
    ]
    assert names == [f"p{number}" for number in range(store.first, 3000)]


def test_pinned_rows_keep_their_names_while_they_are_evicted(new_flows: Any) -> None:
    flows = new_flows(512)
    flows.add(source=flows.party("10.9.9.9", 1, pod="first"))
    number = int(flows.store.segments[0].columns["source"][0])
    with flows.store.pinned() as held:
        assert held[0][1] == 1
        for _ in range(2000):
            flows.add()
        assert flows.store.dictionaries.parties[number].pod == "first"
    kept = flows.store.dictionaries.parties[number]
    assert kept is None or kept.pod != "first"


def test_one_batch_may_span_many_segments(new_flows: Any) -> None:
    store = new_flows(4096).store
    number = store.dictionaries.parties.intern(Party(bytes(16)))
    rows = 3000
    columns = {
        "time_ns": np.arange(rows, dtype=np.int64),
        "kind": np.ones(rows, np.uint8),
        "source": np.full(rows, number, np.uint32),
    }
    store.append(columns, store.node(NodeRef("node1")))
    assert [segment.rows for segment in store.segments][:2] == [256, 256]
    times = np.concatenate([segment.columns["time_ns"][: segment.rows] for segment in store.segments])
    assert times.tolist() == list(range(rows))


def test_sealed_columns_of_zeros_take_no_memory(new_flows: Any) -> None:
    flows = new_flows(4096)
    for _ in range(300):
        flows.add()
    sealed = flows.store.segments[0]
    assert sealed.columns["retransmits"].strides == (0,)
    assert sealed.columns["retransmits"].dtype == STORED["retransmits"]
    assert sealed.columns["time_ns"].strides != (0,)


def test_lost_rows_are_no_flows(flows: Any) -> None:
    flows.add()
    flows.store.append_lost(1, 1, 3, 17, 10, 20)
    assert (flows.store.flows, flows.store.seen, flows.store.lost) == (1, 1, 17)


def test_a_node_is_forgotten_with_its_last_row(new_flows: Any) -> None:
    flows = new_flows(512)
    gone = flows.store.node(NodeRef("gone"))
    flows.store.append_lost(gone, 1, 0, 1, 1, 1)
    flows.store.release_node(gone)
    assert flows.store.dictionaries.nodes[gone] == NodeRef("gone")
    for _ in range(1024):
        flows.add()
    assert flows.store.dictionaries.nodes[gone] is None


def test_rate_is_of_the_last_minute(flows: Any) -> None:
    start = flows.add()
    for second in range(1, 120):
        flows.add(time_ns=start + second * 1_000_000_000)
    now = start + 119 * 1_000_000_000
    assert flows.store.rate(now) == 1.0
    assert flows.store.rate(now + 30 * 1_000_000_000) == 0.5


def test_namespaces_are_told_for_an_hour_even_when_their_flows_are_gone(new_flows: Any) -> None:
    flows = new_flows(512)
    namespaces = Namespaces(flows.store)
    last = flows.add(source=flows.party("10.0.0.9", 9, pod="x", namespace="early"))
    for _ in range(2000):  # evicts it
        last = flows.add()
    assert namespaces.seen(last) == [("", "default"), ("", "early")]
    hour = 3600 * 10**9
    assert namespaces.seen(last + hour) == [("", "default")]
    assert namespaces.seen(last + hour + 1) == []
    assert namespaces.seen(last) == [("", "default")]
