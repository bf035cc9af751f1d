"""Which rows a request means: number, first, since, until, per node, with loss rows in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.pb.flow import flow_pb2 as pb
from services.flows.entries import NodeRef
from services.flows.filters import Filters
from services.flows.select import Window, select

START = 1_700_000_000_000_000_000
MS = 1_000_000
OTHER = NodeRef("node2")


async def chosen(flows: Any, window: Window, *allow: pb.FlowFilter) -> list[int]:
    """Milliseconds after the start of the rows that are selected; losses as negative counts."""
    with flows.store.pinned() as held:
        found: list[int] = []
        async for selection in select(held, flows.store.dictionaries, Filters(allow), window):
            for columns, _ in selection.chunks(10):
                for time, kind, lost in zip(
                    columns["time_ns"].tolist(), columns["kind"].tolist(), columns["bytes"].tolist(), strict=True
                ):
                    found.append(-lost if kind == 255 else (time - START) // MS)
        return found


def at(milliseconds: int) -> int:
    return START + milliseconds * MS


@pytest.fixture
def ten(flows: Any) -> Any:
    """Rows 1 to 10 ms after the start; the even ones are drops."""
    for number in range(1, 11):
        flows.drop() if number % 2 == 0 else flows.add()
    return flows


DROPS = pb.FlowFilter(verdict=[pb.DROPPED])

TABLE: list[tuple[Window, list[int]]] = [
    (Window(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    (Window(number=3), [8, 9, 10]),
    (Window(number=99), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    (Window(number=(1 << 64) - 1), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    (Window(number=3, first=True), [1, 2, 3]),
    (Window(since_ns=at(8)), [8, 9, 10]),
    (Window(since_ns=at(4), number=2), [4, 5]),  # the oldest N from since on
    (Window(since_ns=at(4), number=2, first=True), [4, 5]),
    (Window(until_ns=at(3)), [1, 2, 3]),
    (Window(since_ns=at(3), until_ns=at(5)), [3, 4, 5]),
    (Window(number=3, until_ns=at(9)), [8, 9]),  # the newest three of everything, then cut
    (Window(number=3, until_ns=at(2)), []),
    (Window(number=2, first=True, until_ns=at(1)), [1]),
    (Window(number=2, follow=True), [9, 10]),
    (Window(number=2, follow=True, since_ns=at(5)), [5, 6, 7, 8, 9, 10]),  # follow: number does not limit
]


@pytest.mark.parametrize(("window", "expected"), TABLE, ids=str)
async def test_window(ten: Any, window: Window, expected: list[int]) -> None:
    assert await chosen(ten, window) == expected


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(number=2), [8, 10]),
        (Window(number=2, first=True), [2, 4]),
        (Window(number=2, since_ns=at(3)), [4, 6]),
    ],
    ids=str,
)
async def test_number_counts_flows_that_pass(ten: Any, window: Window, expected: list[int]) -> None:
    assert await chosen(ten, window, DROPS) == expected


async def test_number_is_per_node_and_the_answer_is_in_order_of_time(flows: Any) -> None:
    for number in range(1, 9):
        flows.add(node=OTHER if number % 2 else flows_node(), time_ns=at(number))
    assert await chosen(flows, Window(number=2)) == [5, 6, 7, 8]
    assert await chosen(flows, Window(number=1, first=True)) == [1, 2]


async def test_nodes_that_lag_are_merged_by_time(flows: Any) -> None:
    for number in (1, 5, 9):
        flows.add(time_ns=at(number))
    for number in (2, 3, 4):
        flows.add(node=OTHER, time_ns=at(number))
    assert await chosen(flows, Window()) == [1, 2, 3, 4, 5, 9]
    assert await chosen(flows, Window(since_ns=at(3))) == [3, 4, 5, 9]


async def test_losses_pass_every_filter_and_count_for_nothing(ten: Any) -> None:
    node = ten.store.node(flows_node())
    ten.store.append_lost(node, 1, 0, 42, at(10), at(10))
    assert await chosen(ten, Window(number=1), DROPS) == [10, -42]
    assert await chosen(ten, Window(), pb.FlowFilter(source_pod=["nobody"])) == [-42]


async def test_many_segments(new_flows: Any) -> None:
    flows = new_flows(8192)
    for _ in range(3000):
        flows.add()
    assert await chosen(flows, Window(number=700)) == list(range(2301, 3001))
    assert await chosen(flows, Window(number=700, first=True)) == list(range(1, 701))
    assert await chosen(flows, Window(since_ns=at(300), until_ns=at(900))) == list(range(300, 901))


def flows_node() -> NodeRef:
    return NodeRef("node1", labels=("kubernetes.io/hostname=node1",))


EXPRESSION = pb.FlowFilter(experimental=pb.FlowFilter.Experimental(cel_expression=["_flow.verdict == Verdict.DROPPED"]))


@pytest.mark.parametrize(("window", "expected"), TABLE, ids=lambda value: str(value)[:60])
async def test_an_expression_selects_as_a_field_does(
    ten: Any, window: Window, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.flows.select.COSTLY_ROWS", 3)
    del expected
    assert await chosen(ten, window, EXPRESSION) == await chosen(ten, window, DROPS)


async def test_filters_that_look_at_rows_one_by_one_let_others_have_a_turn(new_flows: Any) -> None:
    flows = new_flows(4096 * 16)
    for _ in range(2000):
        flows.add()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert len(flows.store.segments) == 1
    assert await chosen(flows, Window(), EXPRESSION) == []
    task.cancel()
    assert turns >= 2000 // 256
