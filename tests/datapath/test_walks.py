"""A packet's life, step by step: what goes into a hook, what comes out, which events it leaves."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.all import (
    ARP,
    ICMP,
    IP,
    TCP,
    Ether,
    ICMPv6DestUnreach,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment,
    raw,
)

from services.agent.abi.events import CtState, EventType
from services.agent.events.aggregation import EVERY_PACKET_S
from services.model.verdict import DropReason
from tests.datapath.node import GATEWAY_MAC, HOST, TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, Node, Pod
from tests.datapath.packets import from_pod, parse, ping, received, tcp, to_pod, udp
from tests.datapath.walks import EGRESS, FAMILIES, FRONTEND, INGRESS, OTHER, WEBAPP, Pods, at, seen, send

pytestmark = pytest.mark.root


@FAMILIES
def test_allowed_connection(node: Node, pods: Pods, v6: bool) -> None:
    frontend, webapp, _ = pods
    syn = send(node, frontend, at(webapp, v6), tcp(4000, 80))
    assert syn.verdict == TC_ACT_REDIRECT
    assert syn.packet == received(webapp, at(frontend, v6), tcp(4000, 80))
    assert seen(node) == [(EventType.NEW, 1, 0, 0), (EventType.NEW, 2, 77, 0)]

    # The reply needs no rule and raises no event.
    answer = send(node, webapp, at(frontend, v6), tcp(80, 4000, "SA", seq=9, ack=1))
    assert answer.packet == received(frontend, at(webapp, v6), tcp(80, 4000, "SA", seq=9, ack=1))
    send(node, frontend, at(webapp, v6), tcp(4000, 80, "A", seq=1, ack=10))
    assert seen(node) == []
    entries = [(e.direction, list(e.packets)) for e in node.conntrack().values()]
    assert sorted(entries) == [(INGRESS, [2, 1]), (EGRESS, [2, 1])]
    assert all(e.rtt_us > 0 for e in node.conntrack().values())

    # FIN both ways; the close record counts the last ACK.
    send(node, frontend, at(webapp, v6), tcp(4000, 80, "FA", seq=1, ack=10))
    send(node, webapp, at(frontend, v6), tcp(80, 4000, "FA", seq=10, ack=2))
    send(node, frontend, at(webapp, v6), tcp(4000, 80, "A", seq=2, ack=11))
    closed = node.events()
    assert [(int(e["type"]), e["packets"].tolist()) for e in closed] == [(EventType.CLOSE, [4, 2])] * 2

    # The same ports again are a new connection.
    send(node, frontend, at(webapp, v6), tcp(4000, 80))
    assert seen(node) == [(EventType.NEW, 1, 0, 0), (EventType.NEW, 2, 77, 0)]


@FAMILIES
def test_default_deny_names_itself(node: Node, pods: Pods, v6: bool) -> None:
    _, webapp, other = pods
    for attempt in range(2):
        assert send(node, other, at(webapp, v6), tcp(4000, 80, seq=attempt)).verdict == TC_ACT_SHOT
        events = node.events()
        drop = events[-1]
        assert drop["type"] == EventType.DROP
        assert drop["drop_reason"] == DropReason.POLICY_DENIED
        assert (drop["src_identity"], drop["dst_identity"]) == (OTHER, WEBAPP)
        assert (drop["sport"], drop["dport"], drop["direction"]) == (4000, 80, INGRESS)


def test_explicit_deny_names_its_rule(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.rule(webapp, INGRESS, FRONTEND, 6, 80, rule_id=99, deny=True)
    assert send(node, frontend, webapp.ipv4, tcp(4000, 80)).verdict == TC_ACT_SHOT
    assert seen(node)[-1] == (EventType.DROP, 2, 99, DropReason.POLICY_DENY)


@FAMILIES
def test_policy_change_meets_open_connections(node: Node, pods: Pods, v6: bool) -> None:
    frontend, webapp, _ = pods
    send(node, frontend, at(webapp, v6), tcp(4000, 80))
    send(node, webapp, at(frontend, v6), tcp(80, 4000, "SA", ack=1))
    key = node.rule(webapp, INGRESS, FRONTEND, 6, 80, rule_id=77)
    seen(node)

    node.map("policy").delete(key)
    node.change_policy(webapp)
    data = tcp(4000, 80, "PA", b"GET", seq=1, ack=1)
    assert send(node, frontend, at(webapp, v6), data).verdict == TC_ACT_SHOT
    assert seen(node) == [
        (EventType.VERDICT_CHANGE, 2, 0, DropReason.POLICY_DENIED),
        (EventType.DROP, 2, 0, DropReason.POLICY_DENIED),
    ]
    assert send(node, frontend, at(webapp, v6), data).verdict == TC_ACT_SHOT
    assert seen(node) == [(EventType.DROP, 2, 0, DropReason.POLICY_DENIED)]
    # Replies of the connection still pass; the way back is not policy's.
    assert send(node, webapp, at(frontend, v6), tcp(80, 4000, "A", ack=1)).verdict == TC_ACT_REDIRECT

    node.rule(webapp, INGRESS, FRONTEND, 6, 80, rule_id=78)
    node.change_policy(webapp)
    assert send(node, frontend, at(webapp, v6), data).verdict == TC_ACT_REDIRECT
    assert seen(node) == [(EventType.VERDICT_CHANGE, 2, 78, 0)]


def test_relabelled_peer_is_asked_again(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    send(node, frontend, webapp.ipv4, tcp(4000, 80))
    seen(node)
    frontend.identity = OTHER
    node.put_pod(frontend)
    assert send(node, frontend, webapp.ipv4, tcp(4000, 80, "A")).verdict == TC_ACT_SHOT


@FAMILIES
def test_udp_and_ping(node: Node, pods: Pods, v6: bool) -> None:
    frontend, webapp, _ = pods
    assert send(node, frontend, at(webapp, v6), udp(4000, 53)).verdict == TC_ACT_SHOT
    assert send(node, frontend, at(webapp, v6), ping(v6)).verdict == TC_ACT_SHOT
    node.rule(webapp, INGRESS, FRONTEND, rule_id=5)  # L3 only: covers ping too
    node.rule(webapp, INGRESS, FRONTEND, 17, 53, rule_id=6)
    seen(node)
    assert send(node, frontend, at(webapp, v6), udp(4000, 53)).verdict == TC_ACT_REDIRECT
    assert send(node, webapp, at(frontend, v6), udp(53, 4000)).verdict == TC_ACT_REDIRECT
    assert send(node, frontend, at(webapp, v6), ping(v6)).verdict == TC_ACT_REDIRECT
    assert send(node, webapp, at(frontend, v6), ping(v6, reply=True)).verdict == TC_ACT_REDIRECT
    assert [rule for _, endpoint, rule, _ in seen(node) if endpoint == 2] == [6, 5]
    # Having been pinged is no leave to ping.
    node.map("policy").delete(node.rule(webapp, EGRESS, rule_id=0))
    assert send(node, webapp, at(frontend, v6), ping(v6)).verdict == TC_ACT_SHOT


@FAMILIES
def test_icmp_errors_pass_with_their_connection(node: Node, pods: Pods, v6: bool) -> None:
    frontend, webapp, other = pods
    node.rule(webapp, INGRESS, FRONTEND, 17, 53, rule_id=6)
    node.map("policy").delete(node.rule(webapp, EGRESS, rule_id=0))
    node.map("policy").delete(node.rule(frontend, INGRESS, rule_id=0))
    for pod in pods:
        node.change_policy(pod)
    sent = parse(send(node, frontend, at(webapp, v6), udp(4000, 53)).packet).payload
    error = (ICMPv6DestUnreach(code=4) if v6 else ICMP(type=3, code=3)) / raw(sent)
    seen(node)
    assert send(node, webapp, at(frontend, v6), error).verdict == TC_ACT_REDIRECT
    assert seen(node) == []
    # An error about nothing that is known is traffic like any other.
    assert send(node, webapp, at(other, v6), error).verdict == TC_ACT_SHOT


def test_what_errors_quote_is_read_to_its_ports_or_not_at_all(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.rule(webapp, INGRESS, FRONTEND, 17, 53, rule_id=6)
    node.map("policy").delete(node.rule(webapp, EGRESS, rule_id=0))
    node.change_policy(webapp)
    for chain in (IPv6ExtHdrDestOpt(), IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()):
        sent = parse(send(node, frontend, webapp.ipv6, chain / udp(4000, 53)).packet).payload
        error = ICMPv6DestUnreach(code=4) / raw(sent)
        assert send(node, webapp, frontend.ipv6, error).verdict == TC_ACT_REDIRECT
    # Later fragments have no ports; what lies there is not taken for some.
    send(node, frontend, webapp.ipv4, udp(4000, 53))
    four, six = (IP(src=frontend.ipv4, dst=webapp.ipv4, proto=17), IPv6(src=frontend.ipv6, dst=webapp.ipv6))
    later = IPv6ExtHdrFragment(offset=100, nh=17, id=1)
    whole = ICMP(type=3, code=3) / four / udp(4000, 53)
    assert send(node, webapp, frontend.ipv4, whole).verdict == TC_ACT_REDIRECT
    four.frag = 100
    assert send(node, webapp, frontend.ipv4, ICMP(type=3, code=3) / four / udp(4000, 53)).verdict == TC_ACT_SHOT
    error = ICMPv6DestUnreach(code=4) / six / later / udp(4000, 53)
    assert send(node, webapp, frontend.ipv6, error).verdict == TC_ACT_SHOT


@FAMILIES
def test_spoofed_sources_are_dropped(node: Node, pods: Pods, v6: bool) -> None:
    frontend, webapp, other = pods
    forged = Pod(**{**vars(frontend), "ipv4": other.ipv4, "ipv6": other.ipv6})
    assert send(node, forged, at(webapp, v6), tcp(1, 80)).verdict == TC_ACT_SHOT
    assert seen(node) == [(EventType.DROP, 1, 0, DropReason.INVALID_SOURCE_IP)]
    forged = Pod(**{**vars(frontend), "mac": other.mac})
    assert send(node, forged, at(webapp, v6), tcp(1, 80)).verdict == TC_ACT_SHOT
    assert seen(node) == [(EventType.DROP, 1, 0, DropReason.INVALID_SOURCE_MAC)]


def test_unknown_interface_is_no_endpoint(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    packet = from_pod(frontend, webapp.ipv4, tcp(1, 80))
    assert node.run("from_endpoint", packet, node.ifindexes[3]).verdict == TC_ACT_SHOT
    assert seen(node) == [(EventType.DROP, 0, 0, DropReason.DROP_EP_NOT_READY)]


@pytest.mark.parametrize(
    ("name", "l4", "reason"),
    [
        ("unknown protocol", IP(proto=99).payload, DropReason.CT_UNKNOWN_L4_PROTOCOL),
        ("short tcp", b"\0" * 12, DropReason.CT_TRUNCATED_OR_INVALID_HEADER),
        ("tcp with a lying offset", raw(TCP(dataofs=15)), DropReason.CT_TRUNCATED_OR_INVALID_HEADER),
        ("tcp offset below the header", raw(TCP(dataofs=3)), DropReason.CT_TRUNCATED_OR_INVALID_HEADER),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_packets(node: Node, pods: Pods, name: str, l4: Any, reason: DropReason) -> None:
    frontend, webapp, _ = pods
    proto = 99 if reason == DropReason.CT_UNKNOWN_L4_PROTOCOL else 6
    packet = Ether(src=frontend.mac, dst=GATEWAY_MAC) / IP(src=frontend.ipv4, dst=webapp.ipv4, proto=proto) / l4
    assert node.run("from_endpoint", raw(packet), frontend.ifindex).verdict == TC_ACT_SHOT
    assert seen(node) == [(EventType.DROP, 1, 0, reason)]


def test_lengths_that_lie(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    packet = Ether(src=frontend.mac) / IP(src=frontend.ipv4, dst=webapp.ipv4, len=1400) / tcp(1, 80)
    assert node.run("from_endpoint", raw(packet), frontend.ifindex).verdict == TC_ACT_SHOT
    assert seen(node)[0][3] == DropReason.INVALID_PACKET_DROPPED
    # Ethernet padding is no payload.
    padded = from_pod(frontend, webapp.ipv4, tcp(2, 80)) + bytes(6)
    assert node.run("from_endpoint", padded, frontend.ifindex).verdict == TC_ACT_REDIRECT
    assert node.events()[0]["bytes"][0] == 40


def test_a_packet_refused_early_tells_no_other_packets_ports(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.run("from_endpoint", from_pod(frontend, webapp.ipv4, tcp(4000, 53, "A")), frontend.ifindex)
    node.events()
    solicitation = raw(Ether(dst="33:33:00:00:00:16") / IPv6(src="fe80::1", dst="ff02::16") / ICMPv6ND_NS())
    assert node.run("from_endpoint", solicitation, node.ifindexes[3]).verdict == TC_ACT_SHOT
    (drop,) = node.events()
    assert drop["drop_reason"] == DropReason.DROP_EP_NOT_READY
    assert [int(drop[name]) for name in ("sport", "dport", "protocol", "tcp_flags")] == [0, 0, 0, 0]


@FAMILIES
def test_ttl_ends(node: Node, pods: Pods, v6: bool) -> None:
    frontend, webapp, _ = pods
    assert send(node, frontend, at(webapp, v6), tcp(1, 80), ttl=1).verdict == TC_ACT_SHOT
    assert seen(node)[-1][3] == DropReason.TTL_EXCEEDED


def test_fragments_follow_their_first(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.rule(webapp, INGRESS, FRONTEND, 17, 53, rule_id=6)
    datagram = parse(from_pod(frontend, webapp.ipv4, udp(4000, 53, b"x" * 1600), id=42))
    first, second = (raw(part) for part in fragment(datagram, fragsize=1000))
    assert node.run("from_endpoint", second, frontend.ifindex).verdict == TC_ACT_SHOT
    assert seen(node)[-1][3] == DropReason.IP_FRAGMENTATION_NOT_SUPPORTED
    assert node.run("from_endpoint", first, frontend.ifindex).verdict == TC_ACT_REDIRECT
    assert node.run("from_endpoint", second, frontend.ifindex).verdict == TC_ACT_REDIRECT


def test_link_scope_stays_on_the_link(node: Node, pods: Pods) -> None:
    frontend, _, other = pods
    question = Ether(src=frontend.mac) / ARP(op=1, psrc=frontend.ipv4, pdst="169.254.1.1")
    truth = Ether(src=frontend.mac) / ARP(op=2, hwsrc=frontend.mac, psrc=frontend.ipv4, hwdst=GATEWAY_MAC)
    lie = Ether(src=frontend.mac) / ARP(op=2, hwsrc=frontend.mac, psrc=other.ipv4, hwdst=GATEWAY_MAC)
    solicit = Ether(src=frontend.mac) / IPv6(src="fe80::2", dst="ff02::1") / ICMPv6ND_NS(tgt="fe80::1")
    na = IPv6(src=frontend.ipv6, dst="fe80::1", hlim=255)
    advert = Ether(src=frontend.mac) / na / ICMPv6ND_NA(tgt=frontend.ipv6)
    wrong = Ether(src=frontend.mac) / na / ICMPv6ND_NA(tgt=other.ipv6)
    verdicts = [
        node.run("from_endpoint", raw(packet), frontend.ifindex).verdict
        for packet in (question, truth, lie, solicit, advert, wrong)
    ]
    assert verdicts == [TC_ACT_SHOT, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_SHOT, TC_ACT_OK, TC_ACT_SHOT]
    assert seen(node) == []


@FAMILIES
def test_from_the_stack(node: Node, pods: Pods, v6: bool) -> None:
    _, webapp, _ = pods
    host, outside = ("fd00:77::1", "2001:db8::5") if v6 else ("192.168.77.1", "203.0.113.5")
    node.ipcache(host, HOST)
    node.rule(webapp, INGRESS, HOST, rule_id=0)  # as calc writes it: the node reaches its pods

    def arrive(source: str, port: int = 80) -> int:
        verdict: int = node.run("to_endpoint", to_pod(webapp, source, tcp(5000, port)), webapp.ifindex).verdict
        return verdict

    assert arrive(host, 8080) == TC_ACT_OK
    node.rule(webapp, INGRESS, HOST, 6, 81, deny=True, rule_id=9)
    assert arrive(host, 81) == TC_ACT_SHOT  # a deny rule stops even the node
    assert node.events()[-1]["rule_id"] == 9
    assert arrive(outside) == TC_ACT_SHOT
    event = node.events()[-1]
    assert (event["drop_reason"], event["src_identity"]) == (DropReason.POLICY_DENIED, 10 if v6 else 9)
    node.rule(webapp, INGRESS, 10 if v6 else 9, 6, 80, rule_id=8)
    assert arrive(outside) == TC_ACT_OK
    stray = to_pod(Pod(**{**vars(webapp), "ipv4": "10.9.9.9", "ipv6": "fd99::9"}), host, tcp(1, 80))
    assert node.run("to_endpoint", stray, webapp.ifindex).verdict == TC_ACT_SHOT
    assert seen(node)[-1][3] == DropReason.STALE_OR_UNROUTABLE_IP


@FAMILIES
def test_to_the_stack_and_to_other_nodes(node: Node, pods: Pods, v6: bool) -> None:
    frontend, _, _ = pods
    outside, remote = ("2001:db8::5", "fd00:10:244:2::9") if v6 else ("203.0.113.5", "10.244.2.9")
    assert send(node, frontend, outside, tcp(1, 443)).verdict == TC_ACT_OK
    node.ipcache(remote, OTHER, "192.168.77.2")
    assert send(node, frontend, remote, tcp(1, 80)).verdict == TC_ACT_SHOT
    assert seen(node)[-1][3] == DropReason.NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT  # no overlay here
    node.settings(overlay_ifindex=node.ifindexes[3])
    sent = send(node, frontend, remote, tcp(1, 80))
    assert sent.verdict == TC_ACT_REDIRECT
    assert sent.packet == from_pod(frontend, remote, tcp(1, 80))


def test_pods_may_not_speak_vxlan_to_nodes(node: Node, pods: Pods) -> None:
    frontend, _, _ = pods
    node.ipcache("192.168.77.1", HOST)
    node.ipcache("192.168.77.2", 6, "192.168.77.2")
    node.settings(overlay_ifindex=node.ifindexes[3])
    for address, passed in (("192.168.77.1", TC_ACT_OK), ("192.168.77.2", TC_ACT_REDIRECT)):
        assert send(node, frontend, address, udp(1, 8472)).verdict == TC_ACT_SHOT
        assert seen(node)[-1][3] == DropReason.INVALID_PACKET_DROPPED
        assert send(node, frontend, address, udp(1, 8473)).verdict == passed


def test_l7_needs_its_program(node: Node, pods: Pods) -> None:
    """HTTP rules on UDP can be enforced by nobody: closed."""
    frontend, webapp, _ = pods
    node.rule(frontend, EGRESS, WEBAPP, 17, 80, l7=3, rule_id=4)
    assert send(node, frontend, webapp.ipv4, udp(1, 80)).verdict == TC_ACT_SHOT
    assert seen(node) == [(EventType.DROP, 1, 4, DropReason.HTTP_NO_STATE)]


def test_updates_report_a_living_connection(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.settings(update_interval_s=0.000001)
    send(node, frontend, webapp.ipv4, tcp(1, 80))
    seen(node)
    for sequence in range(400):  # the coarse clock moves every few milliseconds
        send(node, frontend, webapp.ipv4, tcp(1, 80, "A", seq=sequence))
        update = node.events()
        if len(update):
            break
    assert {int(e["type"]) for e in update} == {EventType.UPDATE}
    assert update[0]["packets"][0] > 1
    assert update[0]["ct_state"] == CtState.ESTABLISHED


def test_every_packet_is_told_on_request(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.settings(update_interval_s=EVERY_PACKET_S)
    send(node, frontend, webapp.ipv4, tcp(1, 80))
    seen(node)
    for sequence in range(20):
        send(node, frontend, webapp.ipv4, tcp(1, 80, "A", seq=sequence))
    updates = [event for event in node.events() if event["endpoint_id"] == frontend.id]
    assert [int(e["type"]) for e in updates] == [EventType.UPDATE] * 20
    assert [int(e["packets"][0]) for e in updates] == list(range(2, 22))


def test_retransmissions_are_counted(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    for sequence in (0, 0, 0):
        send(node, frontend, webapp.ipv4, tcp(1, 80, seq=sequence))
    assert {entry.retransmits for entry in node.conntrack().values()} == {2}


def test_a_full_ring_is_counted(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    before = sum(int.from_bytes(v, "little") for v in node.map("lost").lookup_percpu(b"\2\0\0\0"))
    packet = from_pod(frontend, webapp.ipv4, udp(1, 9))
    node.run("from_endpoint", packet, frontend.ifindex)
    records = len(node.events())
    sent = 9000
    for _ in range(sent):
        node.run("from_endpoint", packet, frontend.ifindex)
    got = node.events()
    drops = int((got["type"] == EventType.DROP).sum())
    lost = sum(int.from_bytes(v, "little") for v in node.map("lost").lookup_percpu(b"\2\0\0\0")) - before
    assert records == 2
    assert drops + lost == sent
    assert lost > 0
