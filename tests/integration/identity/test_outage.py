"""etcd goes away, in several ways, and comes back: reads go on, nothing that was answered is lost."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from aetcd import rpc

from services.common.pb.identity.v1 import identity_pb2 as pb

pytestmark = pytest.mark.etcd


def labels(name: object) -> list[str]:
    return [f"k8s:app={name}"]


async def test_killed_and_restarted_in_the_middle(start: Any, watch: Any, etcd: Any, truth: Any) -> None:
    replicas = [await start(etcd_timeout_seconds=2.0) for _ in range(3)]
    watchers = [watch(each) for each in replicas]
    kept: dict[str, int] = {}
    refusals: list[grpc.aio.AioRpcError] = []
    stop = asyncio.Event()

    async def client(number: int) -> None:
        count = 0
        while not stop.is_set():
            name = f"{number}-{count}"
            try:
                kept[name] = await replicas[number % 3].allocate(labels(name), f"n{number}")
                count += 1
            except grpc.aio.AioRpcError as error:
                refusals.append(error)
                await asyncio.sleep(0.02)

    clients = [asyncio.create_task(client(number)) for number in range(12)]
    try:
        await asyncio.sleep(1.0)
        before = dict(kept)
        for watcher in watchers:  # what one replica has answered, the others hear of a moment later
            await watcher.until(lambda watcher=watcher: set(before.values()) <= set(watcher.identities))
        await etcd.stop(kill=True)
        await asyncio.sleep(0.5)
        for index, (name, number) in enumerate(list(before.items())[:60]):
            one = replicas[index % 3].stub
            assert (await one.GetByLabels(pb.GetByLabelsRequest(labels=labels(name)))).identity.id == number
            assert list((await one.Get(pb.GetRequest(id=number))).identity.labels) == labels(name)
        listed = [identity.id async for identity in replicas[0].stub.List(pb.ListRequest())]
        assert set(before.values()) <= set(listed)
        newcomer = watch(replicas[1])
        await newcomer.until(lambda: set(before.values()) <= set(newcomer.identities))
        assert len(refusals) > 20
        await etcd.start()
        count = len(kept)
        async with asyncio.timeout(20):
            while len(kept) < count + 50:  # noqa: ASYNC110 - the clients are the event
                await asyncio.sleep(0.05)
    finally:
        stop.set()
        await asyncio.gather(*clients)
    assert {error.code() for error in refusals} == {grpc.StatusCode.UNAVAILABLE}
    assert all("etcd at 127.0.0.1" in str(error.details()) for error in refusals)
    state = await truth()
    assert {f"k8s:app={name};": number for name, number in kept.items()}.items() <= state.by_labels.items()
    for watcher in [*watchers, newcomer]:
        await watcher.until(lambda watcher=watcher: set(watcher.cluster) == set(state.identities))
        assert (watcher.connections, watcher.resets, watcher.problems) == (1, 1, [])


async def test_started_before_etcd(start: Any, etcd: Any) -> None:
    await etcd.stop()
    one = await start(wait=False)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await one.stub.Get(pb.GetRequest(id=300))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "not loaded yet" in str(refused.value.details())
    await etcd.start()
    await one.ready()
    assert await one.allocate(labels("web"), "a") >= 256


async def test_an_emptied_etcd_is_noticed_and_nodes_are_told(start: Any, watch: Any, etcd: Any, tmp_path: Path) -> None:
    one = await start()
    await one.allocate(labels("web"), "a")
    lease = (await one.stub.KeepAlive(pb.KeepAliveRequest(node="a"))).lease
    watcher = watch(one)
    await watcher.until(lambda: len(watcher.cluster) == 1)
    await etcd.stop()
    shutil.rmtree(tmp_path / "etcd" / "data")
    await etcd.start()
    await watcher.until(lambda: watcher.resets == 2 and not watcher.cluster)
    assert (await one.stub.KeepAlive(pb.KeepAliveRequest(node="a"))).lease != lease
    fresh = await one.allocate(labels("web"), "a")
    await watcher.until(lambda: set(watcher.cluster) == {fresh})


class Link:
    """A TCP relay in front of etcd that can be cut: one replica loses etcd while the others go on."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.partition(":")
        self._port = int(port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_history_compacted_while_a_replica_was_cut_off(
    start: Any, watch: Any, etcd: Any, store: Any, truth: Any
) -> None:
    link = Link(etcd.endpoint)
    await link.open()
    try:
        cut_off = await start(etcd_endpoints=[f"127.0.0.1:{link.port}"], grace_seconds=0.3)
        other = await start(grace_seconds=0.3)
        watcher = watch(cut_off)
        doomed = [await other.allocate(labels(f"doomed-{index}"), "a") for index in range(5)]
        kept = [await other.allocate(labels(f"kept-{index}"), "a") for index in range(5)]
        await watcher.until(lambda: set(watcher.cluster) == {*doomed, *kept})
        await link.cut()
        for number in doomed:
            await other.stub.Release(pb.ReleaseRequest(id=number, node="a"))
        fresh = [await other.allocate(labels(f"fresh-{index}"), "a") for index in range(5)]
        async with asyncio.timeout(10):
            while set((await truth()).identities) != {*kept, *fresh}:  # noqa: ASYNC110 - asks another process
                await asyncio.sleep(0.05)
        revision = (await store.transact([], [])).revision
        await store._call(rpc.KVStub, "Compact", rpc.CompactionRequest(revision=revision))
        assert set(watcher.cluster) == {*doomed, *kept}, "a replica without etcd keeps serving what it knew"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cut_off.allocate(labels("kept-0"), "b")
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        await link.open()
        await watcher.until(lambda: set(watcher.cluster) == {*kept, *fresh})
        assert (watcher.resets, watcher.connections) == (1, 1)
    finally:
        await link.cut()


async def test_a_dead_node_s_references_and_rows_expire(start: Any, watch: Any, truth: Any) -> None:
    one = await start(lease_ttl_seconds=2, grace_seconds=0.4)
    watcher = watch(one)
    shared, dead = await one.allocate(labels("shared"), "alive"), await one.allocate(labels("dead"), "dead")
    assert await one.allocate(labels("shared"), "dead") == shared
    for prefix, number, node in (("10.0.0.1/32", shared, "alive"), ("10.0.1.1/32", dead, "dead")):
        endpoint = pb.Endpoint(prefix=prefix, identity=number, node=node)
        await one.stub.RegisterEndpoint(pb.RegisterEndpointRequest(endpoint=endpoint))
    await watcher.until(lambda: set(watcher.endpoints) == {"10.0.0.1/32", "10.0.1.1/32"})
    answer = await one.stub.Get(pb.GetRequest(id=shared))
    assert list(answer.referenced_by) == ["alive", "dead"]

    async def keep_alive() -> None:
        while True:
            await one.stub.KeepAlive(pb.KeepAliveRequest(node="alive"))
            await asyncio.sleep(0.5)

    keeper = asyncio.create_task(keep_alive())
    try:
        start_of_silence = time.monotonic()
        await watcher.until(lambda: set(watcher.endpoints) == {"10.0.0.1/32"})
        assert time.monotonic() - start_of_silence > 1
        await watcher.until(lambda: set(watcher.cluster) == {shared})
        assert list((await one.stub.Get(pb.GetRequest(id=shared))).referenced_by) == ["alive"]
        assert watcher.problems == []
    finally:
        keeper.cancel()
    assert set((await truth()).references) == {shared}
