"""Watch streams on the in-memory store: snapshot, deltas, resume, and what happens to the slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from services.common.errors import Unavailable
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.identity import wire
from services.identity.endpoints import Registration
from services.identity.state import IdentityChange


class Watcher:
    """An agent as the contract wants it: applies messages, remembers where to resume."""

    def __init__(self) -> None:
        self.identities: dict[int, list[str]] = {}
        self.prefixes: dict[str, int] = {}
        self.revision = 0
        self.resets = 0

    def apply(self, message: pb.WatchResponse) -> None:
        if message.reset:
            self.identities, self.prefixes = {}, {}
            self.resets += 1
        for identity in message.identities:
            self.identities[identity.id] = list(identity.labels)
        for endpoint in message.endpoints:
            assert endpoint.identity in self.identities, "a row came before its identity"
            self.prefixes[endpoint.prefix] = endpoint.identity
        for prefix in message.deleted_prefixes:
            self.prefixes.pop(prefix, None)
        for number in message.deleted_identities:
            assert number not in self.prefixes.values(), "an identity went before its row"
            self.identities.pop(number, None)
        self.revision = message.revision

    async def follow(self, stream: AsyncIterator[pb.WatchResponse]) -> None:
        """Until in sync."""
        async with asyncio.timeout(5):
            async for message in stream:
                self.apply(message)
                if message.in_sync:
                    return

    @property
    def cluster_identities(self) -> set[int]:
        return {number for number in self.identities if number >= 256}


async def allocate(parts: Any, *names: str) -> list[int]:
    found = [(await parts.allocator.allocate(f"k8s:app={name};", "n")).id for name in names]
    await parts.caught_up()
    return found


async def test_a_new_watcher_gets_everything_then_changes(parts: Any) -> None:
    old = await allocate(parts, "a", "b")
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(0, "n")) as stream:
        await watcher.follow(stream)
        assert watcher.cluster_identities == set(old)
        assert watcher.identities[1] == ["reserved:host"]
        new = await allocate(parts, "c")
        watcher.apply(await anext(stream))
        assert watcher.cluster_identities == {*old, *new}
    assert parts.resets == ["new"]
    assert parts.fanout.watchers == 0


async def test_resuming_tells_only_what_changed(parts: Any) -> None:
    await allocate(parts, "a")
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(0, "n")) as stream:
        await watcher.follow(stream)
    new = await allocate(parts, "b")
    async with aclosing(parts.fanout.stream(watcher.revision, "n")) as stream:
        first = await anext(stream)
        assert [identity.id for identity in first.identities] == new
        watcher.apply(first)
        await watcher.follow(stream)
    assert (watcher.resets, parts.resets) == (1, ["new"])


async def test_a_watcher_may_resume_at_another_replica(cluster: Any) -> None:
    first, second = await cluster.replica(), await cluster.replica()
    await allocate(first, "a")
    watcher = Watcher()
    async with aclosing(first.fanout.stream(0, "n")) as stream:
        await watcher.follow(stream)
    new = await allocate(first, "b")
    await second.caught_up()
    async with aclosing(second.fanout.stream(watcher.revision, "n")) as stream:
        await watcher.follow(stream)
    assert set(new) <= watcher.cluster_identities
    assert second.resets == []


async def test_a_replica_that_lags_behind_its_watcher_takes_nothing_back(cluster: Any) -> None:
    first, second = await cluster.replica(), await cluster.replica()
    found = await allocate(first, "a")
    watcher = Watcher()
    async with aclosing(first.fanout.stream(0, "n")) as stream:
        await watcher.follow(stream)
    second.mirror.journal.head = second.mirror.journal.floor  # as if its watch had not delivered yet
    async with aclosing(second.fanout.stream(watcher.revision, "n")) as stream:
        await watcher.follow(stream)
    assert (watcher.cluster_identities, second.resets) == (set(found), [])


async def test_a_revision_of_another_history_is_answered_with_a_snapshot(parts: Any) -> None:
    found = await allocate(parts, "a")
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(10_000, "n")) as stream:
        await watcher.follow(stream)
    assert (watcher.cluster_identities, parts.resets) == (set(found), ["history"])


async def test_a_slow_watcher_hears_only_the_latest(parts: Any) -> None:
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(0, "n")) as stream:
        await watcher.follow(stream)
        found = await allocate(parts, "a", "b", "c")
        await parts.allocator.release(found[0], "n")
        await parts.caught_up()
        await parts.collector.sweep(0)
        await parts.collector.sweep(1000)
        await parts.caught_up()
        message = await anext(stream)
        watcher.apply(message)
    assert watcher.cluster_identities == set(found[1:])
    assert list(message.deleted_identities) == found[:1]


async def test_a_watcher_that_falls_out_of_the_journal_starts_anew(cluster: Any) -> None:
    parts = await cluster.replica(journal=4)
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(0, "n")) as stream:
        await watcher.follow(stream)
        found = await allocate(parts, *"abcdefghij")
        await watcher.follow(stream)
    assert watcher.cluster_identities == set(found)
    assert (watcher.resets, parts.resets) == (2, ["new", "behind"])


async def test_a_resume_before_the_journal_starts_anew(cluster: Any) -> None:
    parts = await cluster.replica(journal=4)
    found = await allocate(parts, *"abcdefghij")
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(4, "n")) as stream:
        await watcher.follow(stream)
    assert watcher.cluster_identities == set(found)
    assert parts.resets == ["behind"]


async def test_another_history_resets_everybody(parts: Any, until: Any) -> None:
    await allocate(parts, "a")
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(0, "n")) as stream:
        await watcher.follow(stream)
        fresh = type(parts.store)()
        await parts.store.leave()
        await until(lambda: not parts.mirror.connected)
        parts.store.__dict__.update(fresh.__dict__)
        await until(lambda: parts.mirror.connected)
        await watcher.follow(stream)
        assert watcher.cluster_identities == set()
        found = await allocate(parts, "b")
        watcher.apply(await anext(stream))
        assert watcher.cluster_identities == set(found)
    assert parts.resets == ["new", "history"]


async def test_half_a_snapshot_is_nothing_to_resume_from(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_BYTES", 40)
    await allocate(parts, *"abcdef")
    async with aclosing(parts.fanout.stream(0, "n")) as stream:
        messages = [await anext(stream) for _ in range(4)]
    assert [message.revision for message in messages] == [0, 0, 0, 0]


async def test_half_a_delta_resumes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_BYTES", 40)
    packed = list(wire.messages([IdentityChange(300 + index, "k8s:app=web;") for index in range(5)], 7))
    assert len(packed) > 1
    assert {message.revision for message in packed} == {7}


async def test_watchers_at_one_place_share_messages(parts: Any) -> None:
    async with aclosing(parts.fanout.stream(0, "a")) as one, aclosing(parts.fanout.stream(0, "b")) as two:
        await Watcher().follow(one)
        await Watcher().follow(two)
        await allocate(parts, "a")
        assert await anext(one) is await anext(two)


async def test_closing_ends_streams_with_the_reason(parts: Any) -> None:
    async with aclosing(parts.fanout.stream(0, "n")) as stream:
        await Watcher().follow(stream)
        parts.fanout.close()
        with pytest.raises(Unavailable, match="resume at another"):
            await anext(stream)


async def test_rows_and_identities_arrive_in_order_whatever_happens(parts: Any) -> None:
    """Churn on a few identities and rows; the watcher asserts the order of every message."""
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(0, "n")) as stream:
        await watcher.follow(stream)
        for round_ in range(30):
            (number,) = await allocate(parts, f"r{round_}")
            prefix = f"10.0.0.{round_ % 3 + 1}/32"
            row = pb.Endpoint(prefix=prefix, identity=number, node="n")
            await parts.registry.register(Registration(prefix, number, "n", row.SerializeToString()))
            await parts.caught_up()
            if round_ % 4 == 0:
                watcher.apply(await anext(stream))
        async with asyncio.timeout(5):
            while watcher.revision < parts.mirror.journal.head:
                watcher.apply(await anext(stream))
    expected = {prefix: pb.Endpoint.FromString(row.value).identity for prefix, row in parts.mirror.state.rows.items()}
    assert watcher.prefixes == expected


async def test_a_watcher_that_knows_more_waits_for_etcd_to_say_why(cluster: Any, until: Any) -> None:
    """The replica was started on an emptied etcd, which then goes away; the watcher comes from the history before."""
    parts = await cluster.replica()
    found = await allocate(parts, "a")
    await cluster.store.leave()
    await until(lambda: not parts.mirror.connected)
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(10_000, "n", "another history")) as stream:
        following = asyncio.create_task(watcher.follow(stream))
        await asyncio.sleep(0.05)
        assert (watcher.resets, following.done()) == (0, False)
        await cluster.store.leave(away=False)
        await following
    assert (watcher.cluster_identities, parts.resets) == (set(found), ["history"])


async def test_a_revision_of_a_history_that_was_overtaken_is_not_resumed(parts: Any) -> None:
    found = await allocate(parts, *"abc")
    watcher = Watcher()
    async with aclosing(parts.fanout.stream(3, "n", "another history")) as stream:
        await watcher.follow(stream)
    assert (watcher.cluster_identities, parts.resets) == (set(found), ["history"])


async def test_the_history_comes_with_in_sync_and_lets_resume(parts: Any) -> None:
    await allocate(parts, "a")
    async with aclosing(parts.fanout.stream(0, "n")) as stream:
        last = [await anext(stream) for _ in range(3)][-1]
    assert last.in_sync
    assert last.history == parts.mirror.history != ""
    async with aclosing(parts.fanout.stream(last.revision, "n", last.history)) as stream:
        assert (await anext(stream)).in_sync
    assert parts.resets == ["new"]
