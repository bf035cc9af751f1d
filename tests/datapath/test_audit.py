"""Audit mode: policy is asked and told about, and nothing is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.agent.abi.conntrack import CtFlags
from services.agent.abi.endpoints import EndpointFlags
from services.agent.abi.events import EventFlags, EventType
from services.agent.abi.http import HttpMode
from services.model.verdict import DropReason
from tests.datapath.http_model import Rule
from tests.datapath.http_node import Connection, HttpNode
from tests.datapath.node import TC_ACT_REDIRECT, TC_ACT_SHOT, Node, Pod
from tests.datapath.packets import ping, tcp, udp
from tests.datapath.walks import EGRESS, FAMILIES, FRONTEND, INGRESS, WEBAPP, Pods, at, send

pytestmark = pytest.mark.root

Told = tuple[EventType, int, int, int, int]


def told(node: Node) -> list[Told]:
    """(type, endpoint, rule, drop reason, flags) of the events since the last look."""
    return [
        (EventType(e["type"]), int(e["endpoint_id"]), int(e["rule_id"]), int(e["drop_reason"]), int(e["flags"]))
        for e in node.events()
    ]


def audit(node: Node, pod: Pod, *, on: bool = True) -> None:
    pod.flags = EndpointFlags.AUDIT if on else 0
    node.change_policy(pod)


@FAMILIES
def test_what_default_deny_would_drop_passes_and_is_told(node: Node, pods: Pods, v6: bool) -> None:
    _, webapp, other = pods
    audit(node, webapp)
    assert send(node, other, at(webapp, v6), tcp(4000, 80)).verdict == TC_ACT_REDIRECT
    assert told(node) == [
        (EventType.NEW, 3, 0, 0, 0),
        (EventType.NEW, 2, 0, DropReason.POLICY_DENIED, EventFlags.AUDIT),
    ]
    assert send(node, webapp, at(other, v6), tcp(80, 4000, "SA", ack=1)).verdict == TC_ACT_REDIRECT
    assert send(node, other, at(webapp, v6), tcp(4000, 80, "A", seq=1, ack=1)).verdict == TC_ACT_REDIRECT
    assert send(node, other, at(webapp, v6), ping(v6)).verdict == TC_ACT_REDIRECT
    assert told(node)[-1] == (EventType.NEW, 2, 0, DropReason.POLICY_DENIED, EventFlags.AUDIT)


def test_a_deny_rule_is_named(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.rule(webapp, INGRESS, FRONTEND, 6, 80, rule_id=99, deny=True)
    audit(node, webapp)
    assert send(node, frontend, webapp.ipv4, tcp(4000, 80)).verdict == TC_ACT_REDIRECT
    assert told(node)[-1] == (EventType.NEW, 2, 99, DropReason.POLICY_DENY, EventFlags.AUDIT)


def test_allowed_traffic_is_told_as_ever(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    audit(node, webapp)
    send(node, frontend, webapp.ipv4, tcp(4000, 80))
    assert told(node)[-1] == (EventType.NEW, 2, 77, 0, 0)


def test_only_the_audited_end_lets_pass(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    audit(node, frontend)
    node.rule(webapp, INGRESS, FRONTEND, 6, 80, rule_id=99, deny=True)
    assert send(node, frontend, webapp.ipv4, tcp(4000, 80)).verdict == TC_ACT_SHOT
    assert told(node)[-1] == (EventType.DROP, 2, 99, DropReason.POLICY_DENY, 0)


def test_what_is_no_policy_is_dropped_all_the_same(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    audit(node, frontend)
    spoofed = Pod(**{**vars(frontend), "ipv4": "10.9.9.9"})
    assert send(node, spoofed, webapp.ipv4, tcp(4000, 80)).verdict == TC_ACT_SHOT
    assert told(node)[-1][3] == DropReason.INVALID_SOURCE_IP


def test_l7_rules_that_nobody_enforces(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.rule(frontend, EGRESS, WEBAPP, 17, 80, l7=3, rule_id=4)
    node.open(webapp, INGRESS)
    audit(node, frontend)
    assert send(node, frontend, webapp.ipv4, udp(1, 80)).verdict == TC_ACT_REDIRECT
    assert told(node)[0] == (EventType.NEW, 1, 4, DropReason.HTTP_NO_STATE, EventFlags.AUDIT)


def test_turned_on_and_off_under_open_connections(node: Node, pods: Pods) -> None:
    _, webapp, other = pods
    audit(node, webapp)
    send(node, other, webapp.ipv4, tcp(4000, 80))
    told(node)

    audit(node, webapp, on=False)
    data = tcp(4000, 80, "PA", b"x", seq=1, ack=1)
    assert send(node, other, webapp.ipv4, data).verdict == TC_ACT_SHOT
    denied = DropReason.POLICY_DENIED
    assert told(node) == [(EventType.VERDICT_CHANGE, 2, 0, denied, 0), (EventType.DROP, 2, 0, denied, 0)]

    audit(node, webapp)
    assert send(node, other, webapp.ipv4, data).verdict == TC_ACT_REDIRECT
    assert told(node) == [(EventType.VERDICT_CHANGE, 2, 0, denied, EventFlags.AUDIT)]
    assert {CtFlags(entry.flags) & CtFlags.AUDITED for entry in node.conntrack().values()} == {0, CtFlags.AUDITED}

    node.open(webapp, INGRESS)
    node.change_policy(webapp)
    assert send(node, other, webapp.ipv4, data).verdict == TC_ACT_REDIRECT
    assert told(node) == [(EventType.VERDICT_CHANGE, 2, 0, 0, 0)]


# Requests.


@pytest.fixture(scope="module")
def http_module(object_cache: Path) -> Iterator[HttpNode]:
    node = HttpNode(object_cache)
    try:
        yield node
    finally:
        node.close()


@pytest.fixture
def http(http_module: HttpNode) -> HttpNode:
    http_module.reset()
    http_module.rules(Rule("GET", "/public/.*"), Rule("GET", "/hosted", "good"))
    audit(http_module, http_module.server)
    http_module.http_events()
    return http_module


def asked(node: HttpNode) -> list[tuple[bytes, int, int, int]]:
    """(path, status, drop reason, flags) of requests."""
    events: np.ndarray = node.http_events()
    return [(bytes(e["path"]), int(e["status"]), int(e["drop_reason"]), int(e["flags"])) for e in events]


@FAMILIES
def test_refused_requests_pass_and_the_next_ones_are_judged(http: HttpNode, v6: bool) -> None:
    connection = Connection(http, v6=v6).open()
    stream = b""
    for path in (b"/public/a", b"/secret", b"/hosted", b"/public/b"):
        request = b"GET " + path + b" HTTP/1.1\r\nHost: bad\r\n\r\n"
        assert connection.send(len(stream), request).passed
        stream += request
    denied = (0, DropReason.HTTP_DENIED, EventFlags.AUDIT)
    assert asked(http) == [
        (b"/public/a", 0, 0, 0),
        (b"/secret", *denied),
        (b"/hosted", *denied),
        (b"/public/b", 0, 0, 0),
    ]
    assert http.answers() == []


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x16\x03\x01\x02\x00", DropReason.HTTP_TLS),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", DropReason.HTTP_HTTP2),
        (b"nonsense\x01\r\n\r\n", DropReason.HTTP_MALFORMED),
    ],
    ids=["tls", "http2", "malformed"],
)
def test_what_is_not_http_passes_and_is_told_once(http: HttpNode, payload: bytes, reason: DropReason) -> None:
    connection = Connection(http).open()
    assert connection.send(0, payload).passed
    assert [event[1:] for event in asked(http)] == [(0, reason, EventFlags.AUDIT)]
    assert connection.send(len(payload), b"more").passed
    assert asked(http) == []
    assert HttpMode.UNKNOWN in [state.flow.mode for state in http.states()]


def test_a_connection_older_than_the_rules(http: HttpNode) -> None:
    connection = Connection(http)  # nobody saw its handshake
    assert connection.send(0, b"GET /secret HTTP/1.1\r\n\r\n").passed
    assert [event[1:] for event in asked(http)] == [(0, DropReason.HTTP_NO_STATE, EventFlags.AUDIT)]
    assert connection.send(24, b"GET /secret HTTP/1.1\r\n\r\n").passed
    assert asked(http) == []
