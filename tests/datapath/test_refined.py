"""Two pods of one identity that a rule tells apart: each packet meets what its own address is allowed."""

from __future__ import annotations

import ipaddress

import pytest

from services.agent.abi.endpoints import EndpointFlags
from services.agent.abi.events import EventType
from services.agent.calc.maps import refined_key
from services.model.verdict import DropReason
from tests.datapath.node import TC_ACT_REDIRECT, TC_ACT_SHOT, Node, u32
from tests.datapath.packets import ping, tcp
from tests.datapath.walks import EGRESS, FAMILIES, FRONTEND, INGRESS, OTHER, WEBAPP, Pods, at, seen, send

pytestmark = pytest.mark.root

PART = (1 << 25) + 7


def refine(node: Node, address: str, identity: int, part: int = PART) -> None:
    node.map("refined").update(refined_key(ipaddress.ip_address(address), identity), u32(part))


@FAMILIES
def test_ingress_knows_the_part_that_the_sender_belongs_to(node: Node, pods: Pods, v6: bool) -> None:
    frontend, webapp, other = pods
    other.identity = FRONTEND
    node.put_pod(other)
    refine(node, at(other, v6), FRONTEND)
    node.rule(webapp, INGRESS, PART, 6, 81, rule_id=78)
    # Nobody asks for parts before the endpoint is told to.
    assert send(node, other, at(webapp, v6), tcp(4000, 80)).verdict == TC_ACT_REDIRECT
    webapp.flags = EndpointFlags.REFINE_INGRESS
    node.change_policy(webapp)
    seen(node)
    assert send(node, frontend, at(webapp, v6), tcp(4000, 80)).verdict == TC_ACT_REDIRECT
    assert send(node, frontend, at(webapp, v6), tcp(4000, 81)).verdict == TC_ACT_SHOT
    assert send(node, other, at(webapp, v6), tcp(4000, 80, "A")).verdict == TC_ACT_SHOT
    assert send(node, other, at(webapp, v6), tcp(4000, 81)).verdict == TC_ACT_REDIRECT
    assert send(node, other, at(webapp, v6), ping(v6)).verdict == TC_ACT_SHOT
    node.rule(webapp, INGRESS, PART, rule_id=79)
    assert send(node, other, at(webapp, v6), ping(v6)).verdict == TC_ACT_REDIRECT


def test_connections_and_events_have_the_identity(node: Node, pods: Pods) -> None:
    _, webapp, other = pods
    webapp.flags = EndpointFlags.REFINE_INGRESS
    node.change_policy(webapp)
    refine(node, other.ipv4, OTHER)
    node.rule(webapp, INGRESS, PART, 6, 80, rule_id=78)
    send(node, other, webapp.ipv4, tcp(4000, 80))
    event = node.events()[-1]
    assert (event["type"], event["rule_id"], event["src_identity"]) == (EventType.NEW, 78, OTHER)
    assert {entry.peer_identity for entry in node.conntrack().values()} == {OTHER, WEBAPP}
    # It is not asked again and again.
    send(node, other, webapp.ipv4, tcp(4000, 80, "A", seq=1))
    assert seen(node) == []


@FAMILIES
def test_egress_knows_the_part_that_the_destination_belongs_to(node: Node, pods: Pods, v6: bool) -> None:
    frontend, _, other = pods
    node.open(other, INGRESS)
    node.rule(frontend, EGRESS, OTHER, rule_id=5, deny=True)
    node.rule(frontend, EGRESS, PART, 6, 9001, rule_id=6)
    refine(node, at(other, v6), OTHER)
    frontend.flags = EndpointFlags.REFINE_EGRESS
    node.change_policy(frontend)
    assert send(node, frontend, at(other, v6), tcp(1, 9001)).verdict == TC_ACT_REDIRECT
    assert seen(node)[0] == (EventType.NEW, 1, 6, 0)
    refine(node, at(other, v6), OTHER, PART + 1)
    node.change_policy(frontend)
    assert send(node, frontend, at(other, v6), tcp(2, 9001)).verdict == TC_ACT_REDIRECT  # the open egress of the walks
    assert seen(node)[0] == (EventType.NEW, 1, 0, 0)


def test_an_address_that_changed_hands_is_no_part_of_the_other_identity(node: Node, pods: Pods) -> None:
    _, webapp, other = pods
    webapp.flags = EndpointFlags.REFINE_INGRESS
    node.change_policy(webapp)
    node.rule(webapp, INGRESS, PART, 6, 80, rule_id=78)
    refine(node, other.ipv4, FRONTEND)
    assert send(node, other, webapp.ipv4, tcp(4000, 80)).verdict == TC_ACT_SHOT
    assert seen(node)[-1] == (EventType.DROP, 2, 0, DropReason.POLICY_DENIED)
