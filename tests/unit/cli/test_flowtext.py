"""Flows as text: the lines that the field's tool would print."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from services.cli import flowtext
from services.cli.flowtext import Style, compact, row
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2

PLAIN = Style(policy_names=False)


def flow(**more: Any) -> flow_pb2.Flow:
    base: dict[str, Any] = {
        "time": "2026-11-23T05:06:07.089Z",
        "verdict": "FORWARDED",
        "IP": {"source": "10.244.1.5", "destination": "10.244.2.7", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 40000, "destination_port": 80}},
        "source": {"identity": 4711, "namespace": "default", "pod_name": "frontend-1"},
        "destination": {"identity": 2},
        "event_type": {"type": 4},
        "traffic_direction": "INGRESS",
        "is_reply": False,
        "Summary": "TCP Flags: SYN",
        "node_name": "node1",
    }
    return ParseDict({**base, **more}, flow_pb2.Flow())


def test_a_forwarded_flow_on_one_line() -> None:
    assert compact(flow(), PLAIN) == (
        "Nov 23 05:06:07.089: default/frontend-1:40000 (ID:4711) -> 10.244.2.7:80 (world) "
        "to-endpoint FORWARDED (TCP Flags: SYN)"
    )


def test_a_reply_reads_in_the_direction_of_its_connection() -> None:
    assert " 10.244.2.7:80 (world) <- default/frontend-1:40000 (ID:4711) " in compact(flow(is_reply=True), PLAIN)
    unknown = flow()
    unknown.ClearField("is_reply")
    assert " <> " in compact(unknown, PLAIN)


def test_node_names_and_numbers_on_request() -> None:
    line = compact(flow(), Style(node_names=True, numeric=True))
    assert line.startswith("Nov 23 05:06:07.089 [node1]: 10.244.1.5:40000 ")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"event_type": {"type": 1, "sub_type": 133}}, "Policy denied"),
        ({"event_type": {"type": 1, "sub_type": 9999}}, "9999, 0"),
        ({"event_type": {"type": 4, "sub_type": 4}}, "to-overlay"),
        ({"event_type": {"type": 5}, "policy_match_type": 2}, "policy-verdict:L3-L4 INGRESS"),
        ({"l7": {"type": "REQUEST", "http": {"method": "GET"}}}, "http-request"),
        ({"event_type": {"type": 99}}, "UNKNOWN"),
    ],
)
def test_the_kind_of_event(event: dict[str, Any], expected: str) -> None:
    assert flowtext.event_type(flow(**event)) == expected


def test_a_policy_verdict_says_who_decided() -> None:
    policy = {"name": "deny-all", "namespace": "default", "kind": "CiliumNetworkPolicy"}
    denied = flow(
        event_type={"type": 5}, verdict="DROPPED", ingress_denied_by=[policy], egress_denied_by=[{"name": "x"}]
    )
    assert flowtext.verdict(denied, policy_names=True) == "DENIED BY deny-all (CiliumNetworkPolicy)"
    assert flowtext.verdict(denied) == "DENIED"


def test_ipv6_addresses_are_bracketed_and_services_named() -> None:
    six = flow(
        IP={"source": "fd00::1", "destination": "fd00::2", "ipVersion": "IPv6"}, destination_service={"name": "svc"}
    )
    assert flowtext.host(six, "source", numeric=True) == "[fd00::1]:40000"
    assert flowtext.host(six, "destination") == "svc:80"


def test_hostile_text_cannot_steer_the_terminal() -> None:
    line = compact(flow(Summary="GET /\x1b[2J\r\nfake line"), PLAIN)
    assert "\x1b" not in line
    assert "\n" not in line
    assert "^[[2J" in line


def test_rows_have_the_columns_of_the_table() -> None:
    assert list(row(flow(), Style(node_names=True))) == [
        "TIMESTAMP",
        "NODE",
        "SOURCE",
        "DESTINATION",
        "TYPE",
        "VERDICT",
        "SUMMARY",
    ]


def test_lost_events_and_unavailable_nodes_are_told() -> None:
    message = ParseDict(
        {"time": "2026-11-23T05:06:07Z", "lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": 12}},
        observer_pb2.GetFlowsResponse(),
    )
    assert flowtext.lost(message) == "Nov 23 05:06:07.000 EVENTS LOST: HUBBLE_RING_BUFFER CPU(0) 12"
    gone = {"node_status": {"state_change": "NODE_UNAVAILABLE", "node_names": ["node2"]}, "node_name": "relay"}
    assert "1 nodes are unavailable: node2" in flowtext.node_status(ParseDict(gone, observer_pb2.GetFlowsResponse()))
    fine = {"node_status": {"state_change": "NODE_CONNECTED", "node_names": ["node2"]}}
    assert flowtext.node_status(ParseDict(fine, observer_pb2.GetFlowsResponse())) == ""
