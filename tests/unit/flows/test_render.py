"""Rows as Hubble flows: field by field what its reference says, and the texts that people read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict

from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2 as pb
from services.flows import mask
from services.flows.columns import Kind
from services.flows.entries import Decision, HttpRequest, NearestRule, NodeRef, ServiceRef
from services.model.verdict import DropReason


def as_dict(flow: pb.Flow) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(flow, preserving_proto_field_name=True)
    return found


def test_an_allowed_connection_is_a_policy_verdict(flows: Any) -> None:
    flows.allow(service=ServiceRef("default", "web"), policy_revision=5)
    flow = as_dict(flows.rendered()[0])
    uuid, time = flow.pop("uuid"), flow.pop("time")
    assert len(uuid) == 36
    assert time.startswith("2023-11-14T22:13:20.001")
    assert flow == {
        "verdict": "FORWARDED",
        "emitter": {"name": "Ciliate", "version": "1.2.3"},
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 40000, "destination_port": 80, "flags": {"SYN": True}}},
        "source": {
            "identity": 1001,
            "namespace": "default",
            "labels": ["k8s:app=client", "k8s:role=frontend"],
            "pod_name": "client",
            "cluster_name": "default",
        },
        "destination": {
            "ID": 7,
            "identity": 1002,
            "namespace": "default",
            "labels": ["k8s:app=server"],
            "pod_name": "server",
            "cluster_name": "default",
        },
        "Type": "L3_L4",
        "node_name": "node1",
        "node_labels": ["kubernetes.io/hostname=node1"],
        "event_type": {"type": 5},
        "destination_service": {"name": "web", "namespace": "default"},
        "traffic_direction": "INGRESS",
        "policy_match_type": 2,
        "is_reply": False,
        "ingress_allowed_by": [
            {
                "name": "deny-all-ingress-to-webapp",
                "namespace": "default",
                "labels": [
                    "k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy",
                    "k8s:io.cilium.k8s.policy.name=deny-all-ingress-to-webapp",
                    "k8s:io.cilium.k8s.policy.namespace=default",
                ],
                "revision": "5",
                "kind": "CiliumNetworkPolicy",
            }
        ],
        "Summary": "TCP Flags: SYN",
    }


def test_a_drop_without_a_rule_names_the_policies_in_the_way(flows: Any) -> None:
    flows.drop()
    flow = flows.rendered()[0]
    assert flow.verdict == pb.DROPPED
    assert (flow.event_type.type, flow.event_type.sub_type) == (1, 133)
    assert (flow.drop_reason, flow.drop_reason_desc) == (133, pb.POLICY_DENIED)
    assert not flow.HasField("is_reply")
    assert [policy.name for policy in flow.ingress_denied_by] == ["deny-all-ingress-to-webapp"]
    assert flow.Summary == "TCP Flags: SYN; default deny by CiliumNetworkPolicy default/deny-all-ingress-to-webapp"


def test_the_same_drop_as_a_policy_verdict(flows: Any) -> None:
    flows.drop(direction=2)
    flow = flows.rendered(pb.FlowFilter(event_type=[pb.EventTypeFilter(type=5)]))[0]
    assert (flow.event_type.type, flow.event_type.sub_type) == (5, 0)
    assert (flow.verdict, flow.drop_reason_desc, flow.policy_match_type) == (pb.DROPPED, pb.POLICY_DENIED, 0)
    assert [policy.name for policy in flow.egress_denied_by] == ["deny-all-ingress-to-webapp"]


def test_a_deny_rule_is_another_reason(flows: Any) -> None:
    flows.drop(drop_reason=181, policy=Decision(True, (flows.policy,)))
    flow = flows.rendered()[0]
    assert flow.drop_reason_desc == pb.POLICY_DENY
    assert flow.Summary.endswith("; denied by CiliumNetworkPolicy default/deny-all-ingress-to-webapp")


def test_other_drops_say_no_policy(flows: Any) -> None:
    flows.add(kind=Kind.DROP, verdict=pb.DROPPED, drop_reason=132, protocol=17)
    flow = flows.rendered()[0]
    assert (flow.drop_reason_desc, flow.Summary) == (pb.INVALID_SOURCE_IP, "UDP")
    assert flows.matching(pb.FlowFilter(event_type=[pb.EventTypeFilter(type=5)])) == []


def test_reasons_of_our_own_are_told_in_hubble_s_numbers(flows: Any) -> None:
    flows.drop(drop_reason=225, policy=Decision(True, (flows.policy,)))
    flow = flows.rendered()[0]
    assert (flow.drop_reason, flow.event_type.sub_type, flow.drop_reason_desc) == (133, 133, pb.POLICY_DENIED)
    assert flow.Summary.endswith(
        "; TLS where HTTP rules apply by CiliumNetworkPolicy default/deny-all-ingress-to-webapp"
    )


def test_reasons_of_our_own_are_told_in_words(flows: Any) -> None:
    own = [reason for reason in DropReason if reason >= 220]
    for reason in own:
        flows.add(kind=Kind.DROP, verdict=pb.DROPPED, drop_reason=reason, protocol=17)
    told = [flow.Summary for flow in flows.rendered() if flow.event_type.type == 1]
    assert len(set(told)) == len(told) == len(own)
    assert all(text.startswith("UDP; ") for text in told)


@pytest.mark.parametrize(("direction", "sub_type", "point"), [(1, 0, pb.TO_ENDPOINT), (2, 5, pb.FROM_ENDPOINT)])
def test_without_policy_a_connection_is_a_trace(flows: Any, direction: int, sub_type: int, point: int) -> None:
    flows.add(direction=direction)
    flow = flows.rendered()[0]
    assert (flow.event_type.type, flow.event_type.sub_type) == (4, sub_type)
    assert (flow.trace_observation_point, flow.trace_reason) == (point, pb.NEW)
    assert flow.HasField("is_reply")
    assert not flow.is_reply.value


def test_a_packet_dropped_before_its_addresses_were_read(flows: Any) -> None:
    nobody = flows.party("::", 0)
    flows.add(kind=Kind.DROP, verdict=pb.DROPPED, drop_reason=139, source=nobody, destination=nobody, protocol=0)
    flow = flows.rendered()[0]
    assert not flow.HasField("IP")
    assert not flow.HasField("l4")
    assert (flow.drop_reason_desc, flow.Summary) == (pb.UNSUPPORTED_L3_PROTOCOL, "Ethernet")


def test_a_closed_connection_tells_its_counters(flows: Any) -> None:
    flows.add(
        kind=Kind.CLOSE,
        tcp_flags=0x13,
        packets=6,
        reply_packets=4,
        bytes=612,
        reply_bytes=9000,
        rtt_us=120,
        duration_us=1_500_000,
        ct_state=2,  # the server's last packet closed it
    )
    flow = flows.rendered()[0]
    assert (flow.is_reply.value, flow.source.pod_name) == (False, "client")
    assert flow.trace_reason == pb.ESTABLISHED
    assert flow.Summary == ("TCP Flags: SYN, ACK, FIN; closed after 1.500s, 6/4 packets, 612/9000 bytes, RTT 0.120ms")


def test_the_rule_and_the_nearest_one(flows: Any) -> None:
    rule = replace(flows.policy, rule="spec.ingressDeny[0]", revision=9)
    flows.drop(drop_reason=181, policy=Decision(True, (rule,)), policy_revision=12)
    nearest = NearestRule(replace(rule, rule="spec.ingress[1]"), ("protocol", "port"))
    flows.drop(policy=Decision(False, (flows.policy,), nearest))
    denied, closed = flows.rendered()
    assert denied.Summary.endswith(f"; denied by {rule} spec.ingressDeny[0]")
    assert denied.ingress_denied_by[0].revision == 9
    assert "ciliate:rule=spec.ingressDeny[0]" in denied.ingress_denied_by[0].labels
    name = "CiliumNetworkPolicy default/deny-all-ingress-to-webapp"
    text = f"default deny by {name}, nearest rule {name} spec.ingress[1], other protocol and port"
    assert closed.Summary == f"TCP Flags: SYN; {text}"


def test_a_changed_verdict(flows: Any) -> None:
    flows.drop(tcp_flags=0x18)
    flows.add(kind=Kind.VERDICT_CHANGE, verdict=pb.DROPPED, drop_reason=133, policy=Decision(False, (flows.policy,)))
    flows.add(kind=Kind.VERDICT_CHANGE, policy=Decision(True, (flows.policy,)))
    _, refused, allowed = flows.rendered()
    assert (refused.event_type.type, allowed.event_type.type) == (1, 5)
    assert "policy changed, connection refused; default deny by" in refused.Summary
    assert allowed.Summary.endswith("policy changed, connection allowed")


def test_what_is_only_audited(flows: Any) -> None:
    denied = Decision(False, (flows.policy,))
    flows.add(kind=Kind.NEW, verdict=pb.AUDIT, drop_reason=133, policy=denied, tcp_flags=2)
    flows.add(kind=Kind.VERDICT_CHANGE, verdict=pb.AUDIT, drop_reason=133)
    flows.http(verdict=pb.AUDIT, drop_reason=220)
    opened, changed, request = flows.rendered()
    assert [flow.verdict for flow in (opened, changed, request)] == [pb.AUDIT] * 3
    assert [flow.event_type.type for flow in (opened, changed, request)] == [5, 5, 129]
    assert [policy.name for policy in opened.ingress_denied_by] == ["deny-all-ingress-to-webapp"]
    assert (opened.drop_reason, opened.is_reply.value) == (0, False)
    name = "CiliumNetworkPolicy default/deny-all-ingress-to-webapp"
    assert opened.Summary == f"TCP Flags: SYN; audit: would be refused: default deny by {name}"
    assert changed.Summary.endswith("; policy changed; audit: would be refused: default deny")
    assert request.Summary.endswith(f"; audit: would be refused: HTTP request not allowed by {name}")


def test_http_requests(flows: Any) -> None:
    flows.http()
    flows.http("/", "POST", verdict=pb.DROPPED, status=403, destination_port=8080)
    allowed, refused = flows.rendered()
    assert allowed.Type == pb.L7
    assert (allowed.event_type.type, allowed.event_type.sub_type) == (129, 0)
    assert as_dict(allowed)["l7"] == {
        "type": "REQUEST",
        "http": {"method": "GET", "url": "http://10.0.0.2/api/v1/users", "protocol": "HTTP/1.1"},
    }
    assert allowed.Summary == "HTTP/1.1 GET http://10.0.0.2/api/v1/users"
    assert not allowed.l4.TCP.HasField("flags")
    assert refused.verdict == pb.DROPPED
    assert (refused.drop_reason, refused.l7.http.code) == (0, 0)
    assert refused.HasField("is_reply")
    assert refused.Summary == (
        "HTTP/1.1 POST http://10.0.0.2:8080/; HTTP request not allowed by "
        "CiliumNetworkPolicy default/deny-all-ingress-to-webapp"
    )
    assert [policy.kind for policy in refused.ingress_denied_by] == ["CiliumNetworkPolicy"]


def test_http_responses(flows: Any) -> None:
    flows.http(
        source=flows.party("10.0.0.2", 1002),
        destination=flows.party("10.0.0.1", 1001),
        source_port=80,
        destination_port=40000,
        ct_state=2,
        status=404,
        duration_us=3456,
    )
    (response,) = flows.rendered()
    assert response.is_reply.value
    assert (response.l7.type, response.l7.http.code, response.l7.latency_ns) == (pb.RESPONSE, 404, 3_456_000)
    assert response.l7.http.url == "http://10.0.0.2/api/v1/users"
    assert response.Summary == "HTTP/1.1 404 3ms (GET http://10.0.0.2/api/v1/users)"
    assert (response.event_type.type, response.verdict) == (129, pb.FORWARDED)


def test_the_trace_of_a_request(flows: Any) -> None:
    flows.http(trace_high=0x4BF9, trace_low=0xA3CE929D0E0E4736, parent_span=0xF067AA0BA902B7, trace_flags=3)
    flows.http()
    traced, other = flows.rendered(details=True)
    assert traced.trace_context.parent.trace_id == "0000000000004bf9a3ce929d0e0e4736"
    assert not other.HasField("trace_context")
    details = details_pb2.FlowDetails()
    assert traced.extensions.Unpack(details)
    assert (details.parent_span_id, details.trace_flags) == ("00f067aa0ba902b7", 3)


def test_a_cut_path_says_so(flows: Any) -> None:
    flows.add(kind=Kind.HTTP, http=HttpRequest("GET", "/" + "a" * 135, 11, 500))
    assert flows.rendered()[0].Summary.endswith("(path cut, 500 bytes)")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"protocol": 6, "tcp_flags": 0xFF}, "TCP Flags: SYN, ACK, RST, FIN, PSH, URG, ECE, CWR"),
        ({"protocol": 17}, "UDP"),
        ({"protocol": 132}, "SCTP"),
        ({"protocol": 47}, "IPv4"),
        ({"protocol": 1, "source_port": 8, "destination_port": 0}, "ICMPv4 EchoRequest"),
        ({"protocol": 1, "source_port": 3, "destination_port": 3}, "ICMPv4 DestinationUnreachable(Port)"),
        ({"protocol": 1, "source_port": 11, "destination_port": 0}, "ICMPv4 TimeExceeded(TTLExceeded)"),
        ({"protocol": 1, "source_port": 3, "destination_port": 99}, "ICMPv4 DestinationUnreachable(Code: 99)"),
        ({"protocol": 1, "source_port": 77, "destination_port": 2}, "ICMPv4 77(2)"),
        ({"protocol": 58, "source_port": 135, "destination_port": 0}, "ICMPv6 NeighborSolicitation"),
        ({"protocol": 58, "source_port": 1, "destination_port": 4}, "ICMPv6 DestinationUnreachable(PortUnreachable)"),
    ],
)
def test_layer_4_texts(flows: Any, fields: dict[str, int], text: str) -> None:
    flows.add(**fields)
    assert flows.rendered()[0].Summary == text


def test_addresses_are_canonical(flows: Any) -> None:
    flows.add(source=flows.party("FD00:0:0::A", 2), destination=flows.party("2001:db8::1", 2))
    flow = flows.rendered()[0]
    assert (flow.IP.source, flow.IP.destination, flow.IP.ipVersion) == ("fd00::a", "2001:db8::1", pb.IPv6)


def test_cluster_names_stand_before_nodes_except_default(flows: Any) -> None:
    flows.add(node=NodeRef("n", "east"))
    response = flows.responses()[0]
    assert (response.node_name, response.flow.node_name) == ("east/n", "east/n")


def test_response_and_flow_have_the_same_time_and_node(flows: Any) -> None:
    flows.add()
    response = flows.responses()[0]
    assert (response.time, response.node_name) == (response.flow.time, response.flow.node_name)


def test_losses(flows: Any) -> None:
    flows.add()
    flows.store.append_lost(1, 1, 3, 17, 1_000_000_000, 3_500_000_000)
    lost = flows.responses()[0]
    assert MessageToDict(lost, preserving_proto_field_name=True) == {
        "node_name": "node1",
        "time": "1970-01-01T00:00:03.500Z",
        "lost_events": {
            "source": "PERF_EVENT_RING_BUFFER",
            "num_events_lost": "17",
            "cpu": 3,
            "first": "1970-01-01T00:00:01Z",
            "last": "1970-01-01T00:00:03.500Z",
        },
    }


CLI_MASK = [
    "time",
    "verdict",
    "ethernet",
    "IP",
    "l4",
    "source.identity",
    "source.namespace",
    "source.pod_name",
    "destination.identity",
    "destination.namespace",
    "destination.pod_name",
    "Type",
    "node_name",
    "l7",
    "event_type",
    "source_service",
    "destination_service",
    "is_reply",
    "Summary",
    "ip_trace_id",
]


def test_the_mask_that_hubble_s_client_sends(flows: Any) -> None:
    flows.allow()
    response = flows.responses(fields=mask.parse(FieldMask(paths=CLI_MASK)))[0]
    flow = as_dict(response.flow)
    assert set(flow) == {
        "time", "verdict", "IP", "l4", "source", "destination", "Type", "node_name", "event_type", "is_reply",
        "Summary",
    }  # fmt: skip
    assert set(flow["source"]) == {"identity", "namespace", "pod_name"}
    assert response.time == response.flow.time


@pytest.mark.parametrize("paths", [["source.identity", "source"], ["source", "source.identity"]])
def test_a_wider_path_wins(flows: Any, paths: list[str]) -> None:
    flows.allow()
    flow = flows.responses(fields=mask.parse(FieldMask(paths=paths)))[0].flow
    assert set(as_dict(flow)) == {"source"}
    assert flow.source.pod_name == "client"


def test_masks_that_are_empty_or_wrong() -> None:
    assert mask.parse(FieldMask()) is None
    with pytest.raises(mask.MaskError, match="invalid fieldmask"):
        mask.parse(FieldMask(paths=["source.nonsense"]))
