"""What clients of the flow API trip over, each as they would notice it: through gRPC, on rows that an agent pushed."""

from __future__ import annotations

import ipaddress
from typing import Any

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict, MessageToJson
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2 as pb
from services.common.pb.relay import relay_pb2
from services.flows.columns import Kind
from services.flows.entries import HttpRequest, Party
from services.model.verdict import Direction, DropReason
from tests.integration.relay.conftest import Agent, Place, until

ALLOWED, DENIED = flow_pb2.FORWARDED, flow_pb2.DROPPED
REPLY = 2
"""Connection state of a row that tells of an answer."""


async def ask(place: Place, **request: Any) -> list[pb.GetFlowsResponse]:
    async with place.client() as stub:
        return [each async for each in stub.GetFlows(pb.GetFlowsRequest(**request))]


async def flows(place: Place, **request: Any) -> list[flow_pb2.Flow]:
    return [each.flow for each in await ask(place, **request) if each.HasField("flow")]


def chosen(**fields: Any) -> list[flow_pb2.FlowFilter]:
    return [flow_pb2.FlowFilter(**fields)]


async def arrived(*agents: Agent) -> None:
    await until(lambda: all(agent.pusher.acknowledged_rows == agent.emitted for agent in agents))


async def some(place: Place, agent: Agent) -> None:
    """A connection, its end, a drop, a request and its response."""
    request = agent.dictionaries.requests.intern(HttpRequest("GET", "/a", 11))
    agent.emit(1, kind=Kind.NEW, match_type=2)
    agent.emit(1, kind=Kind.CLOSE)
    agent.emit(1, kind=Kind.DROP, verdict=DENIED, drop_reason=DropReason.POLICY_DENIED)
    agent.emit(1, kind=Kind.HTTP, http=request, direction=Direction.INGRESS)
    parties = agent.dictionaries.parties
    client, server = (number for number, party in parties.contents() if party.pod in ("client", "server"))
    swapped = {"source": server, "destination": client, "source_port": 80, "destination_port": 4000}
    agent.emit(1, kind=Kind.HTTP, http=request, ct_state=REPLY, status=200, direction=Direction.INGRESS, **swapped)
    await arrived(agent)


@pytest.fixture
async def told(place: Place) -> Any:
    """A relay that holds `some`, while the test runs."""
    agent = place.agent()
    async with place.relay(), agent.pushing():
        await some(place, agent)
        yield place


async def test_1_the_health_name_that_status_asks_first(told: Place) -> None:
    async with told.channel() as there:
        request = health_pb2.HealthCheckRequest(service="hubble.server.Observer")
        answer = await health_pb2_grpc.HealthStub(there).Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_2_both_pairs_of_time_and_node_are_filled_and_a_summary(told: Place) -> None:
    answers = [each for each in await ask(told, number=9) if each.HasField("flow")]
    assert len(answers) == 5
    for answer in answers:
        assert answer.time == answer.flow.time
        assert answer.node_name == answer.flow.node_name == "node1"
        assert answer.flow.Summary


async def test_3_trace_to_endpoint_is_0_in_filters_and_101_in_flows(told: Place) -> None:
    wanted = flow_pb2.EventTypeFilter(type=4, match_sub_type=True, sub_type=0)
    found = await flows(told, number=9, whitelist=chosen(event_type=[wanted]))
    assert found
    assert {(flow.event_type.sub_type, flow.trace_observation_point) for flow in found} == {(0, flow_pb2.TO_ENDPOINT)}
    assert flow_pb2.TO_ENDPOINT == 101
    wanted.sub_type = 101
    assert not await flows(told, number=9, whitelist=chosen(event_type=[wanted]))


async def test_4_whether_it_is_a_reply_has_three_answers(told: Place) -> None:
    everything = await flows(told, number=9)
    assert [flow.is_reply.value if flow.HasField("is_reply") else None for flow in everything] == [
        False,
        False,
        None,
        False,
        True,
    ]
    for wanted, unknown, count in ((False, [DENIED], 3), (True, [], 1)):
        found = await flows(told, number=9, whitelist=chosen(reply=[wanted]))
        # A drop of which it is not known counts as no reply.
        assert [flow.verdict for flow in found if not flow.HasField("is_reply")] == unknown
        assert len([flow for flow in found if flow.HasField("is_reply")]) == count


async def test_5_responses_have_swapped_sides_and_the_direction_of_their_request(told: Place) -> None:
    request, response = await flows(told, number=9, whitelist=chosen(event_type=[flow_pb2.EventTypeFilter(type=129)]))
    assert (request.source.pod_name, request.destination.pod_name) == ("client", "server")
    assert (response.source.pod_name, response.destination.pod_name) == ("server", "client")
    assert request.traffic_direction == response.traffic_direction == flow_pb2.INGRESS


@pytest.mark.parametrize(
    ("pod", "count"), [("client", 1), ("default/client", 1), ("default/", 1), ("other/", 0), ("other/client", 0)]
)
async def test_6_a_name_without_a_slash_is_of_the_default_namespace(told: Place, pod: str, count: int) -> None:
    found = await flows(told, number=9, whitelist=chosen(source_pod=[pod], verdict=[DENIED]))
    assert len(found) == count


async def test_7_an_empty_filter_matches_everything(told: Place) -> None:
    nobody = chosen(source_pod=["nobody"])
    assert not await flows(told, number=9, whitelist=nobody)
    assert len(await flows(told, number=9, whitelist=[*nobody, flow_pb2.FlowFilter()])) == 5
    assert not await flows(told, number=9, blacklist=[flow_pb2.FlowFilter()])


async def test_8_number_0_is_everything_and_with_since_the_oldest(told: Place) -> None:
    assert len(await flows(told)) == 5
    everything = await flows(told)
    newest = await flows(told, number=2)
    assert [flow.uuid for flow in newest] == [flow.uuid for flow in everything[-2:]]
    oldest = await flows(told, number=2, since=everything[0].time)
    assert [flow.uuid for flow in oldest] == [flow.uuid for flow in everything[:2]]


async def test_9_nodes_have_no_prefix_but_are_asked_for_with_one(told: Place) -> None:
    for pattern, count in (("default/node1", 5), ("node1", 5), ("default/", 5), ("other/node1", 0)):
        found = await flows(told, number=9, whitelist=chosen(node_name=[pattern]))
        assert len(found) == count, pattern
        assert all(flow.node_name == "node1" for flow in found)


async def test_10_node_statuses_come_first_and_an_absent_node_is_no_error(told: Place) -> None:
    other = told.agent("node2")
    async with other.pushing():
        other.emit(1)
        await arrived(other)
    answers: list[pb.GetFlowsResponse] = []

    async def without_node2() -> bool:
        answers[:] = await ask(told, number=9)
        states = {each.node_status.state_change for each in answers if each.HasField("node_status")}
        return relay_pb2.NODE_UNAVAILABLE in states

    for _ in range(200):
        if await without_node2():
            break
    kinds = [each.WhichOneof("response_types") for each in answers]
    assert "node_status" in kinds
    assert kinds == sorted(kinds, key=lambda kind: kind != "node_status")
    away = [each.node_status for each in answers if each.node_status.state_change == relay_pb2.NODE_UNAVAILABLE]
    assert [list(each.node_names) for each in away] == [["node2"]]


async def test_11_denied_by_default_and_denied_by_a_rule_are_different(place: Place) -> None:
    agent = place.agent()
    async with place.relay(), agent.pushing():
        agent.emit(1, kind=Kind.DROP, verdict=DENIED, drop_reason=DropReason.POLICY_DENIED)
        agent.emit(1, kind=Kind.DROP, verdict=DENIED, drop_reason=DropReason.POLICY_DENY)
        agent.emit(1, kind=Kind.NEW, match_type=2)
        await arrived(agent)
        default, rule, verdict = await flows(place)
    assert (default.drop_reason_desc, rule.drop_reason_desc) == (flow_pb2.POLICY_DENIED, flow_pb2.POLICY_DENY)
    assert (default.event_type.sub_type, rule.event_type.sub_type) == (133, 181)
    assert (verdict.event_type.type, verdict.event_type.sub_type) == (5, 0)


async def test_12_a_relay_says_how_many_nodes_there_are_even_if_none_is(place: Place) -> None:
    async with place.relay(), place.client() as stub:
        status = await stub.ServerStatus(pb.ServerStatusRequest())
    assert status.HasField("num_connected_nodes")
    assert status.HasField("num_unavailable_nodes")
    assert status.num_connected_nodes.value == status.num_unavailable_nodes.value == 0


async def test_13_http_filters_need_events_that_are_http(told: Place) -> None:
    drop, l7 = flow_pb2.EventTypeFilter(type=1), flow_pb2.EventTypeFilter(type=129)
    with pytest.raises(grpc.aio.AioRpcError):
        await flows(told, number=9, whitelist=chosen(http_method=["GET"], event_type=[drop]))
    assert len(await flows(told, number=9, whitelist=chosen(http_method=["GET"], event_type=[drop, l7]))) == 2


async def test_14_addresses_are_canonical_text(place: Place) -> None:
    agent = place.agent()
    address = ipaddress.ip_address("fd00:0:0:0:0:0:0:a")
    source = agent.dictionaries.parties.intern(Party(address.packed, 1001, (), "default", "six"))
    async with place.relay(), agent.pushing():
        agent.emit(1, source=source)
        await arrived(agent)
        (flow,) = await flows(place, whitelist=chosen(source_ip=["fd00::a"]))
        assert (flow.IP.source, flow.IP.ipVersion) == ("fd00::a", flow_pb2.IPv6)


async def test_15_no_side_inside_the_cluster_has_identity_0(told: Place) -> None:
    for flow in await flows(told):
        assert flow.source.identity
        assert flow.destination.identity
        assert flow.source.ID == flow.destination.ID == 0, "no endpoint of the relay's"


async def test_16_json_has_the_fields_own_names(told: Place) -> None:
    (flow,) = await flows(told, number=1, whitelist=chosen(verdict=[DENIED]))
    document = MessageToDict(flow, preserving_proto_field_name=True)
    assert {"drop_reason_desc", "event_type", "traffic_direction", "node_name", "IP", "Summary"} <= set(document)
    assert '"drop_reason_desc": "POLICY_DENIED"' in MessageToJson(flow, preserving_proto_field_name=True)
