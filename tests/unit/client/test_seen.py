"""What a follower remembers of the flows it was told."""

from __future__ import annotations

import datetime

from hypothesis import given
from hypothesis import strategies as st

from services.client.seen import OVERLAP, Seen

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def at(milliseconds: int) -> datetime.datetime:
    return START + datetime.timedelta(milliseconds=milliseconds)


def test_before_any_flow_it_resumes_where_it_began() -> None:
    assert Seen(START).resume() == START - OVERLAP


def test_old_flows_are_resumed_from_their_own_time() -> None:
    seen = Seen(START)
    assert seen.first_time("a", at(-86_400_000))
    assert seen.resume() == at(-86_400_000) - OVERLAP


def test_flows_without_a_uuid_are_always_new() -> None:
    seen = Seen(START)
    assert seen.first_time("", START)
    assert seen.first_time("", START)


@given(
    st.lists(st.integers(0, 60_000), min_size=1, max_size=60),
    st.lists(st.integers(0, 4_999), min_size=60, max_size=60),
    st.integers(0, 60),
)
def test_whoever_asks_again_from_there_is_told_each_flow_once(times: list[int], late: list[int], cut: int) -> None:
    # Flows come in an order that is off by less than the overlap; the stream breaks off after `cut` of them.
    flows = [(f"{index}", at(time)) for index, time in enumerate(times)]
    arriving = sorted(flows, key=lambda flow: flow[1] + datetime.timedelta(milliseconds=late[int(flow[0])]))
    seen = Seen(START)
    told = [uuid for uuid, time in arriving[:cut] if seen.first_time(uuid, time)]
    again = [flow for flow in arriving if flow[1] >= seen.resume()]
    told += [uuid for uuid, time in again if seen.first_time(uuid, time)]
    assert sorted(told) == sorted(uuid for uuid, _ in flows)


def test_memory_is_bounded_by_the_overlap() -> None:
    seen = Seen(START)
    for index in range(100_000):
        seen.first_time(str(index), at(index))
    assert len(seen._uuids) <= OVERLAP / datetime.timedelta(milliseconds=1) + 1
