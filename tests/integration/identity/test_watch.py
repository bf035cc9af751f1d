"""Watch streams over real gRPC: resume here and elsewhere, and a reader that does not read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.pb.identity.v1 import identity_pb2 as pb

pytestmark = pytest.mark.etcd


def labels(name: object, size: int = 0) -> list[str]:
    return [f"k8s:app={name}", *(f"k8s:pad{index}={'x' * 1000}" for index in range(size // 1000))]


async def first_messages(stub: Any, revision: int) -> list[pb.WatchResponse]:
    """Up to in-sync."""
    messages = []
    async with asyncio.timeout(10):
        async for message in stub.Watch(pb.WatchRequest(resume_revision=revision, node="n")):
            messages.append(message)
            if message.in_sync:
                return messages
    raise AssertionError("the stream ended before in-sync")


async def test_resume_here_elsewhere_and_after_a_restart(start: Any) -> None:
    one, two = await start(), await start()
    old = await one.allocate(labels("old"), "a")
    messages = await first_messages(one.stub, 0)
    assert messages[0].reset
    assert old in {identity.id for message in messages for identity in message.identities}
    revision = messages[-1].revision
    assert revision > 0
    new = await one.allocate(labels("new"), "a")
    await two.allocate(labels("new"), "a")
    restarted = await start()
    for replica in (one, two, restarted):
        messages = await first_messages(replica.stub, revision)
        assert not any(message.reset for message in messages)
        assert {identity.id for message in messages for identity in message.identities} == {new}


async def test_without_a_backlog_a_restarted_replica_sends_a_snapshot(start: Any) -> None:
    one = await start()
    await one.allocate(labels("old"), "a")
    revision = (await first_messages(one.stub, 0))[-1].revision
    new = await one.allocate(labels("new"), "a")
    restarted = await start(backlog_revisions=0)
    messages = await first_messages(restarted.stub, revision)
    assert messages[0].reset
    assert new in {identity.id for message in messages for identity in message.identities}


async def test_a_reader_that_does_not_read_is_reset_and_ends_right(start: Any, truth: Any) -> None:
    one = await start(journal_changes=100)
    call = one.stub.Watch(pb.WatchRequest(node="slow"))
    async with asyncio.timeout(10):
        while not (await call.read()).in_sync:
            pass
    # Each is 8 kB: together far more than the transport buffers, and more changes than the journal holds.
    callers = asyncio.Semaphore(100)

    async def allocate(index: int) -> None:
        async with callers:
            await one.allocate(labels(index, 8000), "a")

    await asyncio.gather(*(allocate(index) for index in range(1200)))
    expected = set((await truth()).identities)
    known: set[int] = set()
    resets = 0
    async with asyncio.timeout(30):
        while known != expected:
            message = await call.read()
            if message.reset:
                resets += 1
                known.clear()
            known.update(identity.id for identity in message.identities if identity.id >= 256)
            known.difference_update(message.deleted_identities)
    call.cancel()
    assert resets >= 1


async def test_every_watcher_of_every_replica_ends_at_the_truth(start: Any, watch: Any, truth: Any) -> None:
    replicas = [await start(grace_seconds=0.1) for _ in range(2)]
    watchers = [watch(replicas[index % 2]) for index in range(20)]

    async def churn(number: int) -> None:
        node = f"n{number}"
        for round_ in range(25):
            one = replicas[(number + round_) % 2]
            identity = await one.allocate(labels(f"{number}-{round_ % 5}"), node)
            prefix = f"10.{number}.0.{round_ % 7 + 1}/32"
            endpoint = pb.Endpoint(prefix=prefix, identity=identity, node=node)
            await one.stub.RegisterEndpoint(pb.RegisterEndpointRequest(endpoint=endpoint))
            if round_ % 3 == 0:
                await one.stub.DeregisterEndpoint(pb.DeregisterEndpointRequest(prefix=prefix, node=node))
                await one.stub.Release(pb.ReleaseRequest(id=identity, node=node))

    await asyncio.gather(*(churn(number) for number in range(8)))
    async with asyncio.timeout(10):
        while (state := await truth()).unreferenced:  # noqa: ASYNC110 - asks another process
            await asyncio.sleep(0.05)
    for watcher in watchers:
        await watcher.until(
            lambda watcher=watcher: (
                set(watcher.cluster) == set(state.identities)
                and {prefix: row.SerializeToString() for prefix, row in watcher.endpoints.items()}
                == {prefix: row.value for prefix, row in state.rows.items()}
            )
        )
        assert watcher.resets == 1
