"""The Observer as Hubble's clients use it: health, reflection, metadata, queries, streams, errors."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2 as pb
from services.common.pb.relay import relay_pb2
from tests.integration.relay.conftest import MILLISECOND, START, Place, until


def stamp(milliseconds: int) -> Timestamp:
    found = Timestamp()
    found.FromNanoseconds(START + milliseconds * MILLISECOND)
    return found


async def collect(stub: Any, request: pb.GetFlowsRequest) -> list[pb.GetFlowsResponse]:
    return [each async for each in stub.GetFlows(request)]


async def test_what_hubble_status_asks(place: Place) -> None:
    agent, other = place.agent(), place.agent("node2")
    async with place.relay(), agent.pushing():
        async with other.pushing():
            agent.emit(10, time_ns=time.time_ns())  # namespaces are those of the last hour
            other.emit(5)
            await until(lambda: agent.pusher.acknowledged_rows + other.pusher.acknowledged_rows == 15)
        async with place.channel() as there, place.client() as stub:
            for name in ("hubble.server.Observer", ""):
                check = health_pb2.HealthCheckRequest(service=name)
                answer = await health_pb2_grpc.HealthStub(there).Check(check)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            call = stub.ServerStatus(pb.ServerStatusRequest())
            status = await call
            assert dict(await call.initial_metadata())["hubble-relay-version"] == "0.1.0"
            assert (status.num_flows, status.max_flows, status.seen_flows) == (15, 65_536, 15)
            assert status.uptime_ns > 0
            assert status.version == "ciliate-relay v0.1.0"

            def one_left(given: pb.ServerStatusResponse) -> bool:
                return (given.num_connected_nodes.value, given.num_unavailable_nodes.value) == (1, 1)

            async with asyncio.timeout(10):
                while not one_left(await stub.ServerStatus(pb.ServerStatusRequest())):  # noqa: ASYNC110 - asks a server
                    await asyncio.sleep(0.01)
            status = await stub.ServerStatus(pb.ServerStatusRequest())
            assert list(status.unavailable_nodes) == ["node2"]
            nodes = (await stub.GetNodes(pb.GetNodesRequest())).nodes
            assert [(node.name, node.state, node.tls.enabled, node.seen_flows) for node in nodes] == [
                ("node1", relay_pb2.NODE_CONNECTED, True, 10),
                ("node2", relay_pb2.NODE_UNAVAILABLE, True, 5),
            ]
            assert nodes[0].address == "10.0.0.9:4244"
            namespaces = (await stub.GetNamespaces(pb.GetNamespacesRequest())).namespaces
            assert [(each.cluster, each.namespace) for each in namespaces] == [("", "default")]


async def test_reflection_tells_hubble_s_services(place: Place) -> None:
    async with place.relay(), place.channel() as there:
        stub = reflection_pb2_grpc.ServerReflectionStub(there)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answers = [each async for each in call]
        names = {service.name for service in answers[0].list_services_response.service}
        assert {"observer.Observer", "ciliate.ingest.v1.FlowIngest", "grpc.health.v1.Health"} <= names


async def test_an_empty_store_serves(place: Place) -> None:
    async with place.relay(), place.client() as stub:
        assert await collect(stub, pb.GetFlowsRequest(number=20)) == []
        assert (await stub.GetNodes(pb.GetNodesRequest())).nodes == []  # type: ignore[comparison-overlap]
        status = await stub.ServerStatus(pb.ServerStatusRequest())
        assert status.HasField("num_connected_nodes")
        assert status.HasField("num_unavailable_nodes")


async def test_node_status_comes_first_then_flows_in_order_of_time(place: Place) -> None:
    agent, other = place.agent(), place.agent("node2")
    async with place.relay(), agent.pushing(), other.pushing(), place.client() as stub:
        agent.emit(10)
        other.emit(10, time_ns=START + MILLISECOND // 2)
        await until(lambda: agent.pusher.acknowledged_rows + other.pusher.acknowledged_rows == 20)
        answers = await collect(stub, pb.GetFlowsRequest(number=3))
        assert answers[0].node_status.state_change == relay_pb2.NODE_CONNECTED
        assert list(answers[0].node_status.node_names) == ["node1", "node2"]
        assert answers[0].node_name == "relay-0"
        times = [each.time.ToNanoseconds() for each in answers[1:]]
        assert len(times) == 6  # three of each node
        assert times == sorted(times)
        window = pb.GetFlowsRequest(since=stamp(3), until=stamp(5))
        assert [each.time.ToNanoseconds() for each in (await collect(stub, window))[1:]] == [
            START + part * MILLISECOND // 2 for part in (6, 7, 8, 9, 10)
        ]


async def test_errors_are_those_of_hubble(place: Place) -> None:
    wrong = [
        (pb.GetFlowsRequest(first=True, follow=True), grpc.StatusCode.INVALID_ARGUMENT, "first cannot be specified"),
        (
            pb.GetFlowsRequest(whitelist=[flow_pb2.FlowFilter(source_ip=["nowhere"])]),
            grpc.StatusCode.UNKNOWN,
            "source_ip",
        ),
        (pb.GetFlowsRequest(field_mask=FieldMask(paths=["nope"])), grpc.StatusCode.UNKNOWN, "invalid fieldmask"),
    ]
    async with place.relay(), place.client() as stub:
        for request, code, text in wrong:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await collect(stub, request)
            assert refused.value.code() == code
            assert text in str(refused.value.details())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetAgentEvents(pb.GetAgentEventsRequest()).read()
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_followers_get_what_comes_and_only_what_passes(place: Place) -> None:
    agent = place.agent()
    async with place.relay(), agent.pushing(), place.client() as stub:
        agent.emit(5, pod="old")
        await until(lambda: agent.pusher.acknowledged_rows == 5)
        wanted = flow_pb2.FlowFilter(source_pod=["wanted"])
        everything = stub.GetFlows(pb.GetFlowsRequest(follow=True))
        some = stub.GetFlows(pb.GetFlowsRequest(follow=True, whitelist=[wanted]))
        last = stub.GetFlows(pb.GetFlowsRequest(follow=True, number=2))
        for call in (everything, some, last):
            assert (await call.read()).HasField("node_status")
        assert [(await last.read()).flow.source.pod_name for _ in range(2)] == ["old", "old"]
        agent.emit(3, pod="other", time_ns=START + 100 * MILLISECOND)
        agent.emit(2, pod="wanted", time_ns=START + 200 * MILLISECOND)
        for call, pods in (
            (everything, ["other"] * 3 + ["wanted"] * 2),
            (some, ["wanted"] * 2),
            (last, ["other"] * 3 + ["wanted"] * 2),
        ):
            async with asyncio.timeout(10):
                assert [(await call.read()).flow.source.pod_name for _ in pods] == pods
            call.cancel()


async def test_a_follower_ends_at_until(place: Place) -> None:
    agent = place.agent()
    async with place.relay(), agent.pushing(), place.client() as stub:
        call = stub.GetFlows(pb.GetFlowsRequest(follow=True, until=stamp(2)))
        await until(lambda: agent.pusher.connected)
        reader = asyncio.create_task(_all(call))
        await asyncio.sleep(0.1)
        agent.emit(10)
        async with asyncio.timeout(10):
            flows = [each for each in await reader if each.HasField("flow")]
        assert len(flows) <= 3


async def _all(call: Any) -> list[pb.GetFlowsResponse]:
    return [each async for each in call]


async def test_a_follower_that_is_too_slow_is_told_how_much_it_missed(place: Place) -> None:
    agent = place.agent(limit_bytes=64 << 20)
    async with place.relay(capacity=4096), agent.pushing(), place.client() as stub:
        call = stub.GetFlows(pb.GetFlowsRequest(follow=True))
        assert call is not None
        agent.emit(1)
        assert (await call.read()).WhichOneof("response_types") in ("node_status", "flow")
        for number in range(100):
            agent.emit(1000, time_ns=START + number * 1000 * MILLISECOND)
        await until(lambda: agent.pusher.acknowledged_rows == agent.emitted, 20)
        seen = lost = 0
        async with asyncio.timeout(30):
            while seen + lost < agent.emitted - 1:
                answer = await call.read()
                seen += answer.HasField("flow")
                if answer.HasField("lost_events"):
                    assert answer.lost_events.source == flow_pb2.HUBBLE_RING_BUFFER
                    lost += answer.lost_events.num_events_lost
        call.cancel()
        assert lost > 0
        assert seen + lost in (agent.emitted, agent.emitted - 1)
