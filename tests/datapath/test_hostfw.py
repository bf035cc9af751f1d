"""Host policies: the node's own packets are policed wherever they enter or leave its stack, forwarded ones are not."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.all import ICMP, IP, TCP, UDP, Ether, ICMPv6ND_NS, ICMPv6PacketTooBig, IPv6, raw

from services.agent.abi.endpoints import HOST_ENDPOINT, EndpointFlags
from services.agent.abi.events import EventFlags, EventType
from services.model.verdict import DropReason
from tests.datapath.node import HOST, TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, Node, Pod
from tests.datapath.packets import network, ping, tcp, to_pod, udp
from tests.datapath.walks import EGRESS, FAMILIES, FRONTEND, INGRESS, Pods, seen, send

pytestmark = pytest.mark.root
REMOTE_NODE, WORLD4 = 6, 9


def ours(v6: bool) -> str:
    return "fd00:77::1" if v6 else "192.168.77.1"


def peer(v6: bool) -> str:
    return "fd00:77::2" if v6 else "192.168.77.2"


def outside(v6: bool) -> str:
    return "2001:db8::5" if v6 else "203.0.113.5"


@pytest.fixture
def host(node: Node, pods: Pods) -> Pod:
    """A policed node: SSH from anywhere, everything to and from its pod 1; egress as it was."""
    for v6 in (False, True):
        node.ipcache(ours(v6), HOST)
        node.ipcache(peer(v6), REMOTE_NODE, "192.168.77.2")
    found = node.host()
    node.open(found, EGRESS)
    node.rule(found, INGRESS, 0, 6, 22, rule_id=50)
    node.rule(found, INGRESS, FRONTEND, rule_id=51)
    for pod in pods:
        node.rule(pod, INGRESS, HOST, rule_id=0)
    node.settings(overlay_ifindex=node.ifindexes[3])
    return found


def arrive(node: Node, source: str, destination: str, l4: Any) -> int:
    frame = bytes(raw(Ether() / network(source, destination) / l4))
    verdict: int = node.run("from_netdev", frame, node.ifindexes[3]).verdict
    return verdict


def leave(node: Node, source: str, destination: str, l4: Any) -> int:
    frame = bytes(raw(Ether() / network(source, destination) / l4))
    verdict: int = node.run("to_netdev", frame, node.ifindexes[3]).verdict
    return verdict


@FAMILIES
def test_what_comes_from_outside(node: Node, host: Pod, v6: bool) -> None:
    assert arrive(node, outside(v6), ours(v6), tcp(4000, 22)) == TC_ACT_OK
    assert seen(node) == [(EventType.NEW, HOST_ENDPOINT, 50, 0)]
    assert leave(node, ours(v6), outside(v6), tcp(22, 4000, "SA", ack=1)) == TC_ACT_OK
    assert arrive(node, outside(v6), ours(v6), tcp(4000, 80)) == TC_ACT_SHOT
    assert arrive(node, outside(v6), ours(v6), ping(v6)) == TC_ACT_SHOT
    assert [event[1:] for event in seen(node)] == [(HOST_ENDPOINT, 0, DropReason.POLICY_DENIED)] * 2


@FAMILIES
def test_answers_to_the_node_pass_though_only_ingress_is_closed(node: Node, host: Pod, v6: bool) -> None:
    assert leave(node, ours(v6), outside(v6), tcp(5000, 443)) == TC_ACT_OK
    assert arrive(node, outside(v6), ours(v6), tcp(443, 5000, "SA", ack=1)) == TC_ACT_OK
    assert arrive(node, outside(v6), ours(v6), tcp(443, 5001, "SA", ack=1)) == TC_ACT_SHOT


@FAMILIES
def test_egress_of_the_node(node: Node, host: Pod, v6: bool) -> None:
    node.rule(host, EGRESS, 0, rule_id=0, deny=True, precedence=1)
    node.rule(host, EGRESS, 0, 17, 53, rule_id=60)
    assert leave(node, ours(v6), outside(v6), udp(999, 53)) == TC_ACT_OK
    assert leave(node, ours(v6), outside(v6), tcp(999, 443)) == TC_ACT_SHOT
    assert seen(node)[-1] == (EventType.DROP, HOST_ENDPOINT, 0, DropReason.POLICY_DENY)
    big = ICMPv6PacketTooBig() / IPv6(src=outside(v6), dst="fd00:10:244:1::1") / UDP() if v6 else None
    big = big or ICMP(type=3, code=4) / IP(src=outside(v6), dst="10.244.1.1") / UDP()
    assert leave(node, ours(v6), outside(v6), big) == TC_ACT_OK, "the router's duty"


@FAMILIES
def test_forwarded_packets_are_nobodys_business(node: Node, host: Pod, pods: Pods, v6: bool) -> None:
    pod = pods[0].ipv6 if v6 else pods[0].ipv4
    assert arrive(node, outside(v6), pod, tcp(4000, 80)) == TC_ACT_OK
    assert arrive(node, outside(v6), outside(v6)[:-1] + "6", tcp(4000, 80)) == TC_ACT_OK
    assert leave(node, pod, outside(v6), tcp(4000, 80)) == TC_ACT_OK
    assert seen(node) == []
    assert len(node.conntrack()) == 0


def test_the_link_and_what_is_no_ip(node: Node, host: Pod) -> None:
    solicit = bytes(Ether() / IPv6(src="fe80::2", dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt=ours(True)))
    arp, lldp = bytes(Ether(type=0x0806) / bytes(46)), bytes(Ether(type=0x88CC) / bytes(46))
    for hook in ("from_netdev", "to_netdev"):
        for frame in (solicit, arp, lldp):
            assert node.run(hook, frame, node.ifindexes[3]).verdict == TC_ACT_OK
    assert seen(node) == []


@FAMILIES
def test_the_overlay_is_exempt_between_nodes_only(node: Node, host: Pod, v6: bool) -> None:
    node.rule(host, EGRESS, 0, rule_id=0, deny=True)
    assert arrive(node, peer(v6), ours(v6), udp(1, 8472)) == TC_ACT_OK
    assert leave(node, ours(v6), peer(v6), udp(1, 8472)) == TC_ACT_OK
    assert arrive(node, peer(v6), ours(v6), udp(1, 8473)) == TC_ACT_SHOT
    assert arrive(node, outside(v6), ours(v6), udp(1, 8472)) == TC_ACT_SHOT
    assert leave(node, ours(v6), outside(v6), udp(1, 8472)) == TC_ACT_SHOT


def test_nobody_outside_is_the_node_itself(node: Node, host: Pod) -> None:
    node.rule(host, INGRESS, HOST, rule_id=7)
    assert arrive(node, ours(False), ours(False), tcp(1, 80)) == TC_ACT_SHOT
    node.rule(host, INGRESS, WORLD4, rule_id=8)
    assert arrive(node, ours(False), ours(False), tcp(1, 80)) == TC_ACT_OK


@FAMILIES
def test_pods_of_the_node_and_the_node(node: Node, host: Pod, pods: Pods, v6: bool) -> None:
    friend, _, other = pods
    assert send(node, friend, ours(v6), tcp(1, 80)).verdict == TC_ACT_OK
    assert send(node, other, ours(v6), tcp(1, 80)).verdict == TC_ACT_SHOT
    assert seen(node) == [
        (EventType.NEW, 1, 0, 0),
        (EventType.NEW, HOST_ENDPOINT, 51, 0),
        (EventType.NEW, 3, 0, 0),
        (EventType.DROP, HOST_ENDPOINT, 0, DropReason.POLICY_DENIED),
    ]
    # The answer, and a connection of the node's own.
    back = to_pod(friend, ours(v6), tcp(80, 1, "SA", ack=1))
    assert node.run("to_endpoint", back, friend.ifindex).verdict == TC_ACT_OK
    node.rule(host, EGRESS, 1003, rule_id=61, deny=True)
    for pod, verdict in ((friend, TC_ACT_OK), (other, TC_ACT_SHOT)):
        assert node.run("to_endpoint", to_pod(pod, ours(v6), tcp(7, 80)), pod.ifindex).verdict == verdict
    assert seen(node) == [
        (EventType.NEW, HOST_ENDPOINT, 0, 0),
        (EventType.NEW, 1, 0, 0),
        (EventType.DROP, HOST_ENDPOINT, 61, DropReason.POLICY_DENY),
    ]
    reply = send(node, friend, ours(v6), tcp(80, 7, "SA", ack=1))
    assert reply.verdict == TC_ACT_OK
    assert seen(node) == []


def test_pods_among_themselves_and_to_the_world_do_not_notice(node: Node, host: Pod, pods: Pods) -> None:
    frontend, webapp, _ = pods
    assert send(node, frontend, webapp.ipv4, tcp(1, 80)).verdict == TC_ACT_REDIRECT
    assert send(node, frontend, outside(False), tcp(1, 443)).verdict == TC_ACT_OK
    assert all(endpoint != HOST_ENDPOINT for _, endpoint, _, _ in seen(node))


def test_no_host_policy_no_difference(node: Node, pods: Pods) -> None:
    node.ipcache(ours(False), HOST)
    for hook in ("from_netdev", "to_netdev"):
        frame = bytes(Ether() / network(outside(False), ours(False)) / tcp(1, 80))
        assert node.run(hook, frame, node.ifindexes[3]).verdict == TC_ACT_OK
    assert send(node, pods[0], ours(False), tcp(1, 80)).verdict == TC_ACT_OK
    assert seen(node) == [(EventType.NEW, 1, 0, 0)]


def test_what_cannot_be_judged_does_not_reach_the_node(node: Node, host: Pod) -> None:
    ip = IP(src=outside(False), dst=ours(False))
    strange = bytes(Ether() / ip.__class__(src=ip.src, dst=ip.dst, proto=47) / bytes(20))
    cut = bytes(Ether() / ip / TCP())[:40]
    fragment = bytes(Ether() / IP(src=ip.src, dst=ip.dst, frag=4, id=77, proto=17) / bytes(32))
    for frame, reason in (
        (strange, DropReason.CT_UNKNOWN_L4_PROTOCOL),
        (cut, DropReason.INVALID_PACKET_DROPPED),
        (fragment, DropReason.IP_FRAGMENTATION_NOT_SUPPORTED),
    ):
        assert node.run("from_netdev", frame, node.ifindexes[3]).verdict == TC_ACT_SHOT
        assert seen(node)[-1][3] == reason
    forwarded = bytes(Ether() / IP(src=ip.src, dst="10.244.1.1", proto=47) / bytes(20))
    assert node.run("from_netdev", forwarded, node.ifindexes[3]).verdict == TC_ACT_OK


def test_audit_and_l7(node: Node, host: Pod) -> None:
    node.rule(host, INGRESS, 0, 6, 80, l7=3, rule_id=70)
    assert arrive(node, outside(False), ours(False), tcp(1, 80)) == TC_ACT_SHOT
    assert seen(node)[-1][3] == DropReason.HTTP_NO_STATE
    node.host(2, EndpointFlags.AUDIT)
    assert arrive(node, outside(False), ours(False), tcp(1, 81)) == TC_ACT_OK
    event = node.events()[-1]
    assert (event["drop_reason"], event["flags"]) == (DropReason.POLICY_DENIED, EventFlags.AUDIT)


def test_a_changed_policy_meets_open_connections(node: Node, host: Pod) -> None:
    assert arrive(node, outside(False), ours(False), tcp(9, 22)) == TC_ACT_OK
    node.map("policy").delete(node.rule(host, INGRESS, 0, 6, 22))
    node.host(2)
    assert arrive(node, outside(False), ours(False), tcp(9, 22, "A", seq=1, ack=1)) == TC_ACT_SHOT
