"""The mirror follows its store through absence, compaction and exchange."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.errors import Unavailable
from services.identity.memory import MemoryStore

WEB = "k8s:app=web;"


async def test_what_was_there_before_is_read(cluster: Any) -> None:
    first = await cluster.replica()
    numbers = {(await first.allocator.allocate(f"k8s:app={index};", "n")).id for index in range(20)}
    second = await cluster.replica()
    assert set(second.mirror.state.identities) == numbers


async def test_memory_stays_while_the_store_is_away_and_catches_up_after(parts: Any, until: Any) -> None:
    found = await parts.allocator.allocate(WEB, "a")
    await parts.caught_up()
    await parts.store.leave()
    await until(lambda: not parts.mirror.connected)
    assert parts.mirror.state.by_labels == {WEB: found.id}
    parts.mirror.require_loaded()
    await parts.store.leave(away=False)
    await until(lambda: parts.mirror.connected)
    other = await parts.allocator.allocate("k8s:app=other;", "a")
    assert await parts.mirror.reached(other.revision, 5)
    assert other.id in parts.mirror.state.identities
    assert parts.mirror.journal.covers(found.revision)


async def test_compaction_while_away_leads_to_a_jump_not_to_a_new_history(cluster: Any, until: Any) -> None:
    parts, other = await cluster.replica(), await cluster.replica()
    kept = await parts.allocator.allocate("k8s:app=kept;", "a")
    gone = await parts.allocator.allocate("k8s:app=gone;", "a")
    await parts.caught_up()
    cursor = parts.mirror.journal.head
    await cluster.store.leave()
    await until(lambda: not parts.mirror.connected and not other.mirror.connected)
    await cluster.store.leave(away=False)
    await parts.allocator.release(gone.id, "a")
    await other.collector.sweep(0)
    await cluster.store.expire(await parts.leases.of("a"))
    fresh = await parts.allocator.allocate("k8s:app=fresh;", "b")
    cluster.store.compact()
    await until(lambda: parts.mirror.connected)
    await parts.caught_up()
    assert parts.mirror.state.references == {fresh.id: {"b"}}
    assert set(parts.mirror.state.unreferenced) == {kept.id, gone.id}
    assert parts.mirror.journal.history == 0
    assert parts.mirror.journal.covers(cursor)
    assert not parts.mirror.journal.covers(cursor + 1)


async def test_an_emptied_store_is_another_history(parts: Any, until: Any) -> None:
    await parts.allocator.allocate(WEB, "a")
    await parts.caught_up()
    empty = MemoryStore()
    await parts.store.leave()
    await until(lambda: not parts.mirror.connected)
    parts.store.__dict__.update(empty.__dict__)
    await until(lambda: parts.mirror.journal.history == 1)
    assert parts.mirror.state.identities == {}
    assert (await parts.allocator.allocate(WEB, "a")).created


async def test_reads_before_the_first_load_are_refused_with_the_reason(cluster: Any, until: Any) -> None:
    await cluster.store.leave()
    parts = await cluster.replica(wait=False)
    await until(lambda: "away" in parts.mirror._problem)
    with pytest.raises(Unavailable, match="not loaded yet: the store is away"):
        parts.mirror.require_loaded()
    await cluster.store.leave(away=False)
    await parts.mirror.loaded.wait()
    parts.mirror.require_loaded()


async def test_a_restarted_replica_knows_some_of_the_past(cluster: Any) -> None:
    first = await cluster.replica()
    found = [await first.allocator.allocate(f"k8s:app={index};", "n") for index in range(20)]
    second = await cluster.replica(backlog=15)
    assert second.mirror.state.identities == first.mirror.state.identities
    assert second.mirror.journal.covers(found[10].revision)
    assert not second.mirror.journal.covers(found[0].revision)


async def test_a_compacted_past_is_done_without(cluster: Any) -> None:
    first = await cluster.replica()
    for index in range(10):
        await first.allocator.allocate(f"k8s:app={index};", "n")
    cluster.store.compact()
    second = await cluster.replica(backlog=15)
    assert len(second.mirror.state.identities) == 10


async def test_waiting_for_a_revision_is_bounded(parts: Any) -> None:
    assert await parts.mirror.reached(0, 0.01)
    assert not await parts.mirror.reached(10_000, 0.01)
    waiting = asyncio.create_task(parts.mirror.reached(parts.store.revision + 1, 5))
    await asyncio.sleep(0)
    await parts.allocator.allocate(WEB, "a")
    assert await waiting
