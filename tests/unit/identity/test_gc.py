"""Collection: after the grace period, and never what somebody refers to."""

from __future__ import annotations

import asyncio
from typing import Any

from services.identity.gc import GraceClock

WEB = "k8s:app=web;"
GRACE = 100.0


def test_the_clock_starts_when_first_seen_and_again_after_every_use() -> None:
    clock = GraceClock(10)
    assert clock.due({300: 5}, now=1000) == []
    assert clock.due({300: 5}, now=1009.9) == []
    assert clock.due({300: 5}, now=1010) == [300]
    assert clock.due({300: 8}, now=1011) == []
    assert clock.due({}, now=1020) == []
    assert clock.due({300: 8}, now=1030) == []
    assert clock.due({300: 8}, now=1040) == [300]


async def test_an_unreferenced_identity_goes_after_the_grace_period(parts: Any) -> None:
    found = await parts.allocator.allocate(WEB, "a")
    await parts.caught_up()
    assert await parts.collector.sweep(0) == 0
    await parts.allocator.release(found.id, "a")
    await parts.caught_up()
    assert [await parts.collector.sweep(now) for now in (0, 99, 100)] == [0, 0, 1]
    await parts.caught_up()
    assert parts.mirror.state.identities == {}
    fresh = await parts.allocator.allocate(WEB, "a")
    assert fresh.created
    assert fresh.id != found.id


async def test_a_dead_node_s_references_do_not_hold(parts: Any) -> None:
    await parts.allocator.allocate(WEB, "a")
    await parts.store.expire(await parts.leases.of("a"))
    await parts.caught_up()
    await parts.collector.sweep(0)
    assert await parts.collector.sweep(GRACE) == 1


async def test_an_allocation_that_memory_has_not_seen_holds(cluster: Any) -> None:
    """The collector's memory is stale: it believes that nobody refers to the identity."""
    parts = await cluster.replica()
    found = await parts.allocator.allocate(WEB, "a")
    await parts.caught_up()
    await parts.allocator.release(found.id, "a")
    await parts.caught_up()
    await parts.collector.sweep(0)
    stale = dict(parts.mirror.state.unreferenced)
    await parts.allocator.allocate(WEB, "b")
    parts.mirror.state.unreferenced = stale
    assert await parts.collector.sweep(GRACE) == 0


async def test_collection_and_allocation_at_once_agree(cluster: Any) -> None:
    """Whoever is first, the allocation's number is bound to the labels afterwards."""
    replicas = [await cluster.replica() for _ in range(2)]
    for round_ in range(30):
        labels = f"k8s:app={round_};"
        first = await replicas[0].allocator.allocate(labels, "a")
        await replicas[0].caught_up()
        await replicas[0].allocator.release(first.id, "a")
        for each in replicas:
            await each.caught_up()
            await each.collector.sweep(round_ * 1000)
        allocation, *_ = await asyncio.gather(
            replicas[round_ % 2].allocator.allocate(labels, "b"),
            replicas[0].collector.sweep(round_ * 1000 + GRACE),
            replicas[1].collector.sweep(round_ * 1000 + GRACE),
        )
        for each in replicas:
            await each.caught_up()
            assert each.mirror.state.identities[allocation.id] == labels
            assert each.mirror.state.by_labels[labels] == allocation.id
            assert each.mirror.state.references[allocation.id] == {"b"}
