"""Services, packet by packet: there, back, to oneself, and what happens when something is missing."""

from __future__ import annotations

import pytest
from scapy.all import ICMP, IP, ICMPv6DestUnreach, IPv6, raw

from services.agent.abi.conntrack import CtScope
from services.agent.abi.events import EventType
from services.model.verdict import DropReason
from tests.datapath.node import TC_ACT_REDIRECT, TC_ACT_SHOT, Node
from tests.datapath.packets import checksums_hold, parse, received, tcp, udp
from tests.datapath.walks import FAMILIES, FRONTEND, INGRESS, Pods, at, seen, send

pytestmark = pytest.mark.root

VIP = {False: "10.96.0.10", True: "fd00:10:96::10"}


@FAMILIES
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_service(node: Node, pods: Pods, v6: bool, protocol: str) -> None:
    frontend, webapp, _ = pods
    number, make = (6, tcp) if protocol == "tcp" else (17, udp)
    node.rule(webapp, INGRESS, FRONTEND, number, 8080, rule_id=7)
    node.service(41, VIP[v6], 80, [(at(webapp, v6), 8080)], number)

    there = send(node, frontend, VIP[v6], make(4000, 80))
    assert there.packet == received(webapp, at(frontend, v6), make(4000, 8080))
    events = node.events()
    assert events["service_id"].tolist() == [41, 41]
    back = send(node, webapp, at(frontend, v6), tcp(8080, 4000, "SA") if number == 6 else udp(8080, 4000))
    answer = tcp(80, 4000, "SA") if number == 6 else udp(80, 4000)
    assert back.packet == received(frontend, VIP[v6], answer)

    # The Service goes: the open connection stays, a new one finds nothing.
    node.map("services").delete_batch([key for key, _ in node.map("services").items()])
    more = tcp(4000, 80, "A") if number == 6 else None
    if more is not None:
        assert send(node, frontend, VIP[v6], more).packet == received(webapp, at(frontend, v6), tcp(4000, 8080, "A"))


@FAMILIES
def test_service_without_backends(node: Node, pods: Pods, v6: bool) -> None:
    frontend, _, _ = pods
    node.service(41, VIP[v6], 80, [])
    assert send(node, frontend, VIP[v6], tcp(4000, 80)).verdict == TC_ACT_SHOT
    event = node.events()[-1]
    assert (event["drop_reason"], event["service_id"]) == (DropReason.SERVICE_BACKEND_NOT_FOUND, 41)


def test_backends_share_new_connections(node: Node, pods: Pods) -> None:
    frontend, webapp, other = pods
    node.open(webapp, INGRESS)
    node.open(other, INGRESS)
    node.service(41, VIP[False], 80, [(webapp.ipv4, 80), (other.ipv4, 80)])
    reached: dict[int, str] = {}
    for port in range(4000, 4060):
        reached[port] = parse(send(node, frontend, VIP[False], tcp(port, 80)).packet)[IP].dst
    assert set(reached.values()) == {webapp.ipv4, other.ipv4}
    for port, backend in reached.items():  # a retransmitted SYN and later packets stay
        assert parse(send(node, frontend, VIP[False], tcp(port, 80)).packet)[IP].dst == backend
        assert parse(send(node, frontend, VIP[False], tcp(port, 80, "A")).packet)[IP].dst == backend
    # One backend goes: what had been unanswered there is sent to the other.
    node.service(41, VIP[False], 80, [(other.ipv4, 80)])
    assert {parse(send(node, frontend, VIP[False], tcp(p, 80)).packet)[IP].dst for p in reached} == {other.ipv4}


@FAMILIES
def test_a_connection_of_the_pods_own_keeps_its_tuple(node: Node, pods: Pods, v6: bool) -> None:
    """From the same port a pod talks to a backend, and then opens a connection to the Service."""
    frontend, webapp, other = pods
    for pod in (webapp, other):
        node.open(pod, INGRESS)
    node.service(41, VIP[v6], 80, [(at(webapp, v6), 8080)])
    for flags in ("S", "A"):
        send(node, frontend, at(webapp, v6), tcp(4000, 8080, flags))
        send(node, webapp, at(frontend, v6), tcp(8080, 4000, "SA" if flags == "S" else "A"))
    node.events()
    assert send(node, frontend, VIP[v6], tcp(4000, 80)).verdict == TC_ACT_SHOT
    event = node.events()[-1]
    assert (event["drop_reason"], event["service_id"]) == (DropReason.NO_MAPPING_FOR_NAT_MASQUERADE, 41)
    own = send(node, frontend, at(webapp, v6), tcp(4000, 8080, "A"))
    assert own.packet == received(webapp, at(frontend, v6), tcp(4000, 8080, "A"))
    answer = send(node, webapp, at(frontend, v6), tcp(8080, 4000, "A"))
    assert answer.packet == received(frontend, at(webapp, v6), tcp(8080, 4000, "A"))
    # Where there is another backend, one of the next tries gets it.
    node.service(41, VIP[v6], 80, [(at(webapp, v6), 8080), (at(other, v6), 8080)])
    assert any(
        found.packet == received(other, at(frontend, v6), tcp(4000, 8080))
        for found in (send(node, frontend, VIP[v6], tcp(4000, 80)) for _ in range(40))
        if found.verdict != TC_ACT_SHOT
    )
    # And once the pod's own is over, so is the rule.
    node.service(42, VIP[v6], 81, [(at(webapp, v6), 8080)])
    assert send(node, frontend, VIP[v6], tcp(4000, 81)).verdict == TC_ACT_SHOT
    send(node, frontend, at(webapp, v6), tcp(4000, 8080, "RA"))
    assert send(node, frontend, VIP[v6], tcp(4000, 81)).packet == received(webapp, at(frontend, v6), tcp(4000, 8080))


def test_an_answered_syn_that_comes_again_is_the_services_own(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.open(webapp, INGRESS)
    node.service(41, VIP[False], 80, [(webapp.ipv4, 8080)])
    send(node, frontend, VIP[False], tcp(4000, 80))
    send(node, webapp, frontend.ipv4, tcp(8080, 4000, "SA"))
    again = send(node, frontend, VIP[False], tcp(4000, 80))
    assert again.packet == received(webapp, frontend.ipv4, tcp(4000, 8080))


@FAMILIES
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_hairpin(node: Node, pods: Pods, v6: bool, protocol: str) -> None:
    """A pod reaches itself through its Service, though its policy lets nobody in on that port."""
    _, webapp, _ = pods
    number, make = (6, tcp) if protocol == "tcp" else (17, udp)
    node.service(41, VIP[v6], 80, [(at(webapp, v6), 8080)], number)
    there = send(node, webapp, VIP[v6], make(4000, 80))
    loop = "fd63:696c:6961:7465::1" if v6 else "169.254.42.1"
    assert there.verdict == TC_ACT_REDIRECT
    assert there.packet == received(webapp, loop, make(4000, 8080))
    back = send(node, webapp, loop, tcp(8080, 4000, "SA") if number == 6 else udp(8080, 4000))
    assert back.packet == received(webapp, VIP[v6], tcp(80, 4000, "SA") if number == 6 else udp(80, 4000))
    assert seen(node) == [(EventType.NEW, 2, 0, 0)]
    assert CtScope.HAIRPIN in {key.scope for key in node.conntrack()}


@FAMILIES
def test_icmp_error_through_a_service(node: Node, pods: Pods, v6: bool) -> None:
    frontend, webapp, _ = pods
    node.open(webapp, INGRESS)
    node.service(41, VIP[v6], 80, [(at(webapp, v6), 8080)], 17)
    sent = parse(send(node, frontend, VIP[v6], udp(4000, 80)).packet).payload
    error = (ICMPv6DestUnreach(code=4) if v6 else ICMP(type=3, code=3)) / raw(sent)
    got = send(node, webapp, at(frontend, v6), error)
    assert got.verdict == TC_ACT_REDIRECT
    assert checksums_hold(got.packet)
    packet = parse(got.packet)
    layer = IPv6 if v6 else IP
    assert packet[layer].src == VIP[v6]
    inner = layer(raw(packet[layer].payload)[8:])
    assert (inner.dst, inner.dport, inner.sport) == (VIP[v6], 80, 4000)


def test_other_ports_of_a_service_address(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.service(41, VIP[False], 80, [(webapp.ipv4, 80)])
    node.service(42, VIP[False], 0, [], 0)  # the address itself, as calc marks it
    assert send(node, frontend, VIP[False], tcp(1, 81)).verdict == TC_ACT_SHOT
    assert seen(node)[-1][3] == DropReason.SERVICE_BACKEND_NOT_FOUND
