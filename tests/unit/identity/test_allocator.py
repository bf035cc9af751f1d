"""Allocation against the in-memory store: races, lost leases, full ranges, damage."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from services.common.errors import Exhausted, Internal, Unavailable
from services.identity.allocator import Allocation, Numbers
from services.identity.store import Delete, Put

WEB = "k8s:app=web;"


async def test_the_same_labels_have_one_number(parts: Any) -> None:
    first = await parts.allocator.allocate(WEB, "a")
    await parts.caught_up()
    again = await parts.allocator.allocate(WEB, "b")
    assert (first.created, again.created, again.id) == (True, False, first.id)
    await parts.caught_up()
    assert parts.mirror.state.references == {first.id: {"a", "b"}}


async def test_a_racing_replica_takes_the_winner_s_number(cluster: Any) -> None:
    replicas = [await cluster.replica() for _ in range(3)]
    found = await asyncio.gather(*(replicas[index % 3].allocator.allocate(WEB, f"n{index}") for index in range(60)))
    assert len({allocation.id for allocation in found}) == 1
    assert sum(allocation.created for allocation in found) == 1


async def test_racing_for_few_numbers_never_shares_one(cluster: Any) -> None:
    replicas = [await cluster.replica(first=256, last=300) for _ in range(3)]
    found: list[Allocation] = await asyncio.gather(
        *(replicas[index % 3].allocator.allocate(f"k8s:app={index % 45};", "n") for index in range(135))
    )
    assert sorted({allocation.id for allocation in found}) == list(range(256, 301))


async def test_a_full_range_is_said_so(cluster: Any) -> None:
    parts = await cluster.replica(first=256, last=257)
    for index in range(2):
        await parts.allocator.allocate(f"k8s:app={index};", "n")
    await parts.caught_up()
    with pytest.raises(Exhausted, match=r"no identity is free in 256\.\.257"):
        await parts.allocator.allocate("k8s:app=3;", "n")
    assert (await parts.allocator.allocate("k8s:app=1;", "n")).created is False


async def test_away_is_refused_with_the_reason_and_nothing_is_left_behind(parts: Any) -> None:
    await cluster_away(parts)
    with pytest.raises(Unavailable, match="away"):
        await parts.allocator.allocate(WEB, "a")
    await parts.store.leave(away=False)
    assert (await parts.allocator.allocate(WEB, "a")).created


async def cluster_away(parts: Any) -> None:
    await parts.store.leave()


async def test_a_lease_that_expired_is_replaced(parts: Any) -> None:
    await parts.allocator.allocate(WEB, "a")
    lease = await parts.leases.of("a")
    await parts.store.expire(lease)
    assert (await parts.allocator.allocate("k8s:app=other;", "a")).created
    assert await parts.leases.of("a") != lease


async def test_release_is_idempotent(parts: Any) -> None:
    found = await parts.allocator.allocate(WEB, "a")
    await parts.caught_up()
    assert await parts.allocator.release(found.id, "a") > 0
    await parts.caught_up()
    assert await parts.allocator.release(found.id, "a") == 0
    assert parts.mirror.state.references == {}


async def test_a_release_of_an_older_claim_changes_nothing(parts: Any) -> None:
    first, second = await parts.allocator.allocate(WEB, "a"), await parts.allocator.allocate(WEB, "a")
    await parts.caught_up()
    assert await parts.allocator.release(first.id, "a", first.revision) == 0
    assert parts.mirror.state.claims == {"a": {first.id: second.revision}}
    assert await parts.allocator.release(first.id, "a", second.revision) > 0
    await parts.caught_up()
    assert (parts.mirror.state.claims, parts.mirror.state.references) == ({}, {})


async def test_a_master_key_deleted_by_hand_is_written_again(parts: Any) -> None:
    found = await parts.allocator.allocate(WEB, "a")
    await parts.store.transact([], [Delete(parts.keys.identity(found.id))])
    await parts.caught_up()
    assert (await parts.allocator.allocate(WEB, "b")).id == found.id
    await parts.caught_up()
    assert parts.mirror.state.identities == {found.id: WEB}


async def test_a_number_with_two_label_sets_is_refused(parts: Any) -> None:
    await parts.store.transact(
        [], [Put(parts.keys.identity(300), b"k8s:app=other;"), Put(parts.keys.labels(WEB), b"300")]
    )
    with pytest.raises(Internal, match="identity 300 has two label sets"):
        await parts.allocator.allocate(WEB, "a")


def test_a_number_given_back_rests_while_others_are_free() -> None:
    numbers = Numbers(256, 265, random.Random(1))
    for number in range(256, 265):
        numbers.rest(number)
    assert numbers.take({}) == 265
    assert numbers.take({}) in range(256, 265)


def test_a_number_being_given_out_is_not_given_twice() -> None:
    numbers = Numbers(256, 257, random.Random(1))
    assert {numbers.take({}), numbers.take({})} == {256, 257}
    with pytest.raises(Exhausted):
        numbers.take({})
    numbers.settle(256)
    assert numbers.take({}) == 256
