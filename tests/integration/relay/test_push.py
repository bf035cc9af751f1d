"""Agents -> relay over real gRPC: what breaks, restarts, overflows or cheats, the sums hold."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.common.pb.ingest.v1 import ingest_pb2_grpc
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel
from services.flows.entries import NodeRef
from tests.integration.relay.conftest import MILLISECOND, START, Agent, Place, until


async def all_flows(place: Place) -> list[observer_pb2.GetFlowsResponse]:
    async with place.client() as stub:
        return [each async for each in stub.GetFlows(observer_pb2.GetFlowsRequest())]


async def test_flows_arrive_with_their_names(place: Place) -> None:
    agent = place.agent()
    async with place.relay(), agent.pushing():
        agent.emit(3)
        agent.emit(2, pod="other", time_ns=START + MILLISECOND * 10)
        await until(lambda: agent.pusher.acknowledged_rows == 5)
        flows = [each.flow for each in await all_flows(place) if each.HasField("flow")]
        assert [flow.source.pod_name for flow in flows] == ["client"] * 3 + ["other"] * 2
        assert [flow.l4.TCP.source_port for flow in flows] == [0, 1, 2, 3, 4]
        assert {flow.node_name for flow in flows} == {"node1"}
        assert {flow.node_labels[0] for flow in flows} == {"kubernetes.io/hostname=node1"}
        assert flows[0].destination_service.name == "web"
        assert [policy.name for policy in flows[0].ingress_allowed_by] == ["allow"]
        assert place.count("ciliate_relay_flows_stored_total") == 5
    assert agent.buffer.bytes == 0


async def test_nothing_is_lost_or_doubled_when_streams_break(place: Place) -> None:
    """A proxy between agent and relay cuts the connection at random places, many times."""
    agent = Agent(NodeRef("node1"), f"unix://{place.directory}/proxy.sock", place.files("agent", "node1"))
    proxy = CuttingProxy(place.directory / "proxy.sock", place.directory / "relay.sock")
    async with place.relay(), proxy.serving(), agent.pushing():
        for number in range(200):
            agent.emit(50, time_ns=START + number * 50 * MILLISECOND)
            if number % 20 == 10:
                proxy.cut()
            await asyncio.sleep(0.005)
        await until(lambda: agent.pusher.acknowledged_rows == agent.emitted, 30)
        flows = [each.flow for each in await all_flows(place) if each.HasField("flow")]
    assert [flow.l4.TCP.source_port for flow in flows] == list(range(10_000))
    assert proxy.cuts >= 5


async def test_received_plus_counted_lost_is_emitted(place: Place) -> None:
    """The relay is away while the agent emits more than its buffer holds; kernel losses are told as well."""
    agent = place.agent(limit_bytes=200_000)
    async with agent.pushing():
        async with place.relay():
            agent.emit(100)
            await until(lambda: agent.pusher.acknowledged_rows == 100)
        for _ in range(100):
            agent.emit(100)
        agent.buffer.lose(pb.KERNEL_RING, 1, 77, START)
        dropped = agent.buffer.dropped_rows
        assert dropped > 5000
        async with place.relay():
            await until(lambda: agent.buffer.empty, 20)
            responses = await all_flows(place)
    flows = [each for each in responses if each.HasField("flow")]
    lost = {each.lost_events.source: each.lost_events for each in responses if each.HasField("lost_events")}
    # 100 were in the store of the first relay; the second began empty.
    assert len(flows) + dropped + 100 == agent.emitted
    assert (lost[1].num_events_lost, lost[1].cpu.value) == (77, 1)
    assert lost[2].num_events_lost == dropped
    assert place.count("hubble_lost_events_total") == dropped + 77


async def test_an_agent_may_push_only_its_own_node(place: Place) -> None:
    async with place.relay():
        for role, node, claimed in (("agent", "node2", "node1"), ("client", "", "node1"), ("relay", "node1", "node1")):
            async with channel(place.target, place.files(role, node), "relay") as there:
                call: Any = ingest_pb2_grpc.FlowIngestStub(there).Push()  # type: ignore[no-untyped-call]
                await call.write(pb.PushRequest(hello=pb.Hello(node=claimed, instance=1)))
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    assert await call.read() is grpc.aio.EOF
                assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
                assert "node1" in str(refused.value.details())


async def test_an_agent_may_not_read(place: Place) -> None:
    async with place.relay(), channel(place.target, place.files("agent", "node1"), "relay") as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ServerStatus(observer_pb2.ServerStatusRequest())
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "hello",
    [
        pb.Hello(node=""),
        pb.Hello(node="a/b"),
        pb.Hello(node="n" * 300),
        pb.Hello(node="node1", cluster="a/b"),
        pb.Hello(node="node1", node_labels=["x" * 9999]),
    ],
    ids=range(5),
)
async def test_a_hello_that_is_none(place: Place, hello: pb.Hello) -> None:
    async with place.relay(), channel(place.target, place.files("agent", "node1"), "relay") as there:
        call: Any = ingest_pb2_grpc.FlowIngestStub(there).Push()  # type: ignore[no-untyped-call]
        await call.write(pb.PushRequest(hello=hello))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            assert await call.read() is grpc.aio.EOF
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def entry(number: int) -> pb.Entry:
    return pb.Entry(number=number, party=pb.Party(address=bytes(16)))


BAD = [
    pb.PushRequest(batch=pb.Batch(sequence=1, rows=2, columns=[pb.Column(id=pb.KIND, values=b"\1")])),
    pb.PushRequest(batch=pb.Batch(sequence=1, rows=1, columns=[pb.Column(id=pb.KIND, values=b"\xff")])),
    pb.PushRequest(batch=pb.Batch(sequence=1, rows=1)),
    pb.PushRequest(batch=pb.Batch(sequence=1, rows=1 << 20)),
    pb.PushRequest(
        batch=pb.Batch(
            sequence=1,
            rows=1,
            columns=[pb.Column(id=pb.KIND, values=b"\1"), pb.Column(id=pb.SOURCE, values=b"\5\0\0\0")],
        )
    ),
    pb.PushRequest(
        batch=pb.Batch(
            sequence=1,
            rows=1,
            columns=[pb.Column(id=pb.KIND, values=b"\1"), pb.Column(id=pb.SOURCE, values=b"\xff\xff\xff\xff")],
        )
    ),
    pb.PushRequest(batch=pb.Batch(sequence=1, entries=[entry(1 << 31)])),
    pb.PushRequest(batch=pb.Batch(sequence=1, entries=[pb.Entry(number=1, party=pb.Party(address=b"x"))])),
    pb.PushRequest(batch=pb.Batch(sequence=1, entries=[pb.Entry(number=1)])),
    pb.PushRequest(batch=pb.Batch(sequence=1, entries=[pb.Entry(number=1, http=pb.Http(path="x" * 9999))])),
    pb.PushRequest(hello=pb.Hello(node="node1")),
    pb.PushRequest(),
]


@pytest.mark.parametrize("message", BAD, ids=range(len(BAD)))
async def test_what_cannot_be_read_is_refused_and_leaves_nothing(place: Place, message: pb.PushRequest) -> None:
    async with place.relay():
        async with channel(place.target, place.files("agent", "node1"), "relay") as there:
            call: Any = ingest_pb2_grpc.FlowIngestStub(there).Push()  # type: ignore[no-untyped-call]
            await call.write(pb.PushRequest(hello=pb.Hello(node="node1", instance=1)))
            assert (await call.read()).HasField("welcome")
            await call.write(message)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                assert await call.read() is grpc.aio.EOF
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert not [each for each in await all_flows(place) if each.HasField("flow")]
        await until(lambda: place.count("ciliate_relay_parties") == 0)


async def test_a_new_agent_process_starts_over_and_takes_the_node_s_place(place: Place) -> None:
    first, second = place.agent(), place.agent()
    async with place.relay(), first.pushing():
        first.emit(3)
        await until(lambda: first.pusher.acknowledged_rows == 3)
        async with second.pushing():
            second.emit(4)
            await until(lambda: second.pusher.acknowledged_rows == 4)
            assert len([each for each in await all_flows(place) if each.HasField("flow")]) == 7


async def test_names_are_freed_with_the_last_flow_and_the_stream(place: Place) -> None:
    agent = place.agent()
    async with place.relay(capacity=1024):
        async with agent.pushing():
            for number in range(60):
                agent.emit(100, pod=f"pod-{number}")
            await until(lambda: agent.pusher.acknowledged_rows == 6000)
            assert place.count("ciliate_relay_parties") >= 60
        await until(lambda: place.count("ciliate_relay_parties") <= 16)


class CuttingProxy:
    """Passes bytes between two unix sockets, until it is told to cut."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self._open: set[asyncio.StreamWriter] = set()
        self.cuts = 0

    def cut(self) -> None:
        """Break every connection without a goodbye."""
        self.cuts += len(self._open) // 2
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(str(self._target))
        self._open |= {writer, there_writer}
        await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))
        self._open -= {writer, there_writer}

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(random.randint(1, 9000)):
                target.write(data)
                await target.drain()
        except OSError:
            pass
        target.transport.abort()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """The proxy listens while the context is open."""
        server = await asyncio.start_unix_server(self._serve, str(self._path))
        try:
            yield
        finally:
            self.cut()
            server.close()
