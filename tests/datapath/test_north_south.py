"""Services from outside, packet by packet: local and remote backends, SNAT and DSR, errors, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.all import ICMP, IP, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, raw

from services.agent.abi.config import ConfigFlags
from services.agent.abi.lb import ServiceFlags, SourceRangeKey
from services.agent.abi.nat import NatFlags
from services.model.verdict import DropReason
from tests.datapath.gateway import (
    NODE4,
    NODE6,
    WORLD4,
    WORLD6,
    arrives,
    expose,
    frame,
    leaves,
    prepare,
    route,
    table,
    uplink,
    wildcard,
)
from tests.datapath.node import TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, Node, Pod, ip, u32
from tests.datapath.node import WORLD4 as WORLD_IDENTITY
from tests.datapath.packets import checksums_hold, from_pod, network, parse, tcp, udp
from tests.datapath.walks import FAMILIES, INGRESS, Pods, at

pytestmark = pytest.mark.root

OVERLAY = 9999
LAYERS = pytest.mark.parametrize(("layer", "protocol"), [(tcp, 6), (udp, 17)], ids=["tcp", "udp"])


@pytest.fixture
def pod(node: Node, pods: Pods) -> Pod:
    """A backend that anybody may reach; the node serves the outside."""
    prepare(node, flags=ConfigFlags.NORTH_SOUTH)
    route(node)
    node.open(pods[0], INGRESS)
    return pods[0]


def ends(v6: bool) -> tuple[str, str, str]:
    """(node, client, remote backend)"""
    return (NODE6, WORLD6, "fd00:10:244:2::5") if v6 else (NODE4, WORLD4, "10.244.2.5")


def tuple_of(packet: bytes) -> tuple[str, int, str, int]:
    seen = parse(packet)
    l4 = seen[2] if hasattr(seen[2], "sport") else seen[3]
    return seen[1].src, l4.sport, seen[1].dst, l4.dport


def dropped(node: Node) -> list[int]:
    return [int(e["drop_reason"]) for e in node.events() if e["drop_reason"]]


@FAMILIES
@LAYERS
def test_a_local_backend_sees_the_client(node: Node, pod: Pod, v6: bool, layer: Any, protocol: int) -> None:
    own, client, _ = ends(v6)
    expose(node, 5, own, 30080, [(at(pod, v6), 80)], protocol, local=(at(pod, v6),))
    there = arrives(node, client, own, layer(50000, 30080))
    assert there.verdict == TC_ACT_REDIRECT
    assert tuple_of(there.packet) == (client, 50000, at(pod, v6), 80)
    assert checksums_hold(there.packet)
    (event,) = node.events()
    assert (event["endpoint_id"], event["service_id"]) == (pod.id, 5)
    assert event["src_identity"] == WORLD_IDENTITY + v6
    answer = layer(80, 50000, "SA") if protocol == 6 else layer(80, 50000)
    back = node.run("from_endpoint", from_pod(pod, client, answer), pod.ifindex)
    assert back.verdict == TC_ACT_REDIRECT
    assert tuple_of(back.packet) == (own, 30080, client, 50000)
    assert parse(back.packet)[1].ttl == 63 if not v6 else parse(back.packet)[1].hlim == 63
    assert checksums_hold(back.packet)


@FAMILIES
@LAYERS
def test_a_remote_backend_sees_the_node(node: Node, pod: Pod, v6: bool, layer: Any, protocol: int) -> None:
    own, client, far = ends(v6)
    node.ipcache(far, 4711)
    expose(node, 5, own, 30080, [(far, 80)], protocol)
    there = arrives(node, client, own, layer(50000, 30080))
    assert there.verdict == TC_ACT_REDIRECT
    source, port, target, target_port = tuple_of(there.packet)
    assert (source, target, target_port) == (own, far, 80)
    assert port == 50000  # free, so it stays
    assert checksums_hold(there.packet)
    back = arrives(node, far, own, layer(80, port))
    assert back.verdict == TC_ACT_REDIRECT
    assert tuple_of(back.packet) == (own, 30080, client, 50000)
    assert checksums_hold(back.packet)
    again = arrives(node, client, own, layer(50000, 30080, "A") if protocol == 6 else layer(50000, 30080))
    assert tuple_of(again.packet) == (own, port, far, 80)
    assert len(table(node)) == 2


@FAMILIES
def test_remote_backends_are_reached_by_the_overlay_where_there_is_one(node: Node, pod: Pod, v6: bool) -> None:
    own, client, far = ends(v6)
    node.settings(flags=ConfigFlags.NORTH_SOUTH, overlay_ifindex=OVERLAY)
    node.ipcache(far, 4711, "192.168.77.2")
    expose(node, 5, own, 30080, [(far, 80)])
    there = arrives(node, client, own, tcp(50000, 30080))
    assert there.verdict == TC_ACT_REDIRECT
    assert tuple_of(there.packet)[2:] == (far, 80)


@FAMILIES
def test_dsr_carries_the_address_and_the_backends_node_answers(node: Node, pod: Pod, v6: bool) -> None:
    """One node plays both: what it sends as the entrance it receives as the backend's."""
    own, client, far = ends(v6)
    node.ipcache(far, 4711)
    expose(node, 5, own, 30080, [(far, 80)], flags=ServiceFlags.DSR)
    there = arrives(node, client, own, tcp(50000, 30080))
    seen = parse(there.packet)
    assert tuple_of(there.packet) == (client, 50000, far, 80)
    if v6:
        assert IPv6ExtHdrDestOpt in seen
        assert ip(own) + bytes.fromhex("7580") in raw(seen[IPv6ExtHdrDestOpt])
    else:
        assert raw(seen[IP])[20:28] == bytes([0x9A, 8]) + bytes.fromhex("7580") + ip(own)[-4:]
        assert checksums_hold(there.packet)
    assert raw(seen.lastlayer()) is not None
    data = arrives(node, client, own, tcp(50000, 30080, "A"))
    assert data.packet == frame(client, far, tcp(50000, 80, "A"), ttl=63)  # only what opens a connection carries it
    (entry,) = table(node).values()
    assert entry.flags & NatFlags.DSR

    # The backend's node.
    at_backend = bytearray(there.packet)
    offset = 14 + (24 if v6 else 16)
    at_backend[offset : offset + (16 if v6 else 4)] = ip(at(pod, v6))[0 if v6 else 12 :]
    arrived = parse(bytes(at_backend))
    if not v6:
        del arrived[IP].chksum
    del arrived.lastlayer().chksum
    got = node.run("from_netdev", bytes(raw(arrived)), uplink(node))
    assert got.verdict == TC_ACT_REDIRECT
    assert got.packet[14:] == frame(client, at(pod, v6), tcp(50000, 80), ttl=62)[14:]  # nothing of it is left
    back = node.run("from_endpoint", from_pod(pod, client, tcp(80, 50000, "SA")), pod.ifindex)
    assert tuple_of(back.packet) == (own, 30080, client, 50000)
    assert checksums_hold(back.packet)


@FAMILIES
def test_dsr_in_the_name_of_somebody_else(node: Node, pod: Pod, v6: bool) -> None:
    """An option from nowhere does not make a pod answer with an address that is no Service's."""
    _, client, _ = ends(v6)
    foreign = "2001:db8::bad" if v6 else "203.0.113.66"
    if v6:
        option = bytes([6, 2, 0x1B, 20]) + ip(foreign) + bytes.fromhex("7580") + bytes(2)
        packet = bytearray(frame(client, at(pod, v6), tcp(50000, 80)))
        packet[20] = 60
        packet[18:20] = (int.from_bytes(packet[18:20], "big") + 24).to_bytes(2, "big")
        packet[54:54] = option
        sent = bytes(packet)
    else:
        sent = frame(client, pod.ipv4, tcp(50000, 80), options=[b"\x9a\x08" + bytes.fromhex("7580") + ip(foreign)[-4:]])
    assert node.run("from_netdev", sent, uplink(node)).verdict == TC_ACT_SHOT
    assert dropped(node) == [DropReason.SERVICE_BACKEND_NOT_FOUND]
    assert not table(node)


def test_a_datagram_too_large_for_dsr_goes_by_snat(node: Node, pod: Pod) -> None:
    _, client, far = ends(False)
    node.ipcache(far, 4711)
    expose(node, 5, NODE4, 30053, [(far, 53)], 17, flags=ServiceFlags.DSR)
    there = arrives(node, client, NODE4, udp(50000, 30053, b"x" * 1470))
    assert tuple_of(there.packet) == (NODE4, 50000, far, 53)


def test_source_ranges(node: Node, pod: Pod) -> None:
    expose(node, 5, "192.0.2.80", 80, [(pod.ipv4, 80)], flags=ServiceFlags.SOURCE_RANGES, local=(pod.ipv4,))
    node.map("source_ranges").update(
        SourceRangeKey(prefixlen=32 + 96 + 24, service_id=5, address=ip("203.0.113.0")).pack(), u32(1)
    )
    try:
        assert arrives(node, "203.0.113.9", "192.0.2.80", tcp(50000, 80)).verdict == TC_ACT_REDIRECT
        assert arrives(node, "198.51.100.9", "192.0.2.80", tcp(50000, 80)).verdict == TC_ACT_SHOT
        assert dropped(node) == [DropReason.DENIED_BY_LB_SRC_RANGE_CHECK]
    finally:
        ranges = node.map("source_ranges")
        ranges.delete_batch([key for key, _ in ranges.items()])


def test_other_ports_of_a_services_address_and_other_traffic(node: Node, pod: Pod) -> None:
    wildcard(node, "192.0.2.80")
    assert arrives(node, WORLD4, "192.0.2.80", tcp(50000, 81)).verdict == TC_ACT_SHOT
    assert dropped(node) == [DropReason.SERVICE_BACKEND_NOT_FOUND]
    ssh = frame(WORLD4, NODE4, tcp(50000, 22))
    result = node.run("from_netdev", ssh, uplink(node))
    assert (result.verdict, result.packet) == (TC_ACT_OK, ssh)
    for protocol in (47, 89):  # GRE, OSPF: the stack's business
        other = frame(WORLD4, NODE4, b"x" * 40, proto=protocol)
        result = node.run("from_netdev", other, uplink(node))
        assert (result.verdict, result.packet) == (TC_ACT_OK, other)


def test_ingress_policy_is_asked_about_the_client(node: Node, pods: Pods, pod: Pod) -> None:
    webapp = pods[1]  # takes the frontend only
    expose(node, 5, NODE4, 30080, [(webapp.ipv4, 80)], local=(webapp.ipv4,))
    assert arrives(node, WORLD4, NODE4, tcp(50000, 30080)).verdict == TC_ACT_SHOT
    assert dropped(node) == [DropReason.POLICY_DENIED]


@FAMILIES
def test_errors_of_the_clients_side_reach_the_backend(node: Node, pod: Pod, v6: bool) -> None:
    own, client, far = ends(v6)
    router = "2001:db8::fe" if v6 else "198.51.100.254"
    node.ipcache(far, 4711)
    expose(node, 5, own, 30080, [(far, 80)])
    arrives(node, client, own, tcp(1000, 30080))
    (port,) = {e.sport for e in table(node).values() if not e.flags & NatFlags.ANSWER}
    port = (port & 255) << 8 | port >> 8
    quoted = network(own, client) / tcp(30080, 1000, "A")
    error = (ICMPv6PacketTooBig(mtu=1280) if v6 else ICMP(type=3, code=4, nexthopmtu=1280)) / quoted
    got = arrives(node, router, own, error)
    assert got.verdict == TC_ACT_REDIRECT
    assert checksums_hold(got.packet)
    seen = parse(got.packet)
    inside = (IPv6 if v6 else IP)(raw(seen[2].payload))
    assert (seen[1].src, seen[1].dst) == (router, far)
    assert (inside.src, inside.sport, inside.dst, inside.dport) == (far, 80, own, port)


@FAMILIES
def test_errors_of_the_backends_side_reach_the_client(node: Node, pod: Pod, v6: bool) -> None:
    own, client, far = ends(v6)
    node.ipcache(far, 4711)
    expose(node, 5, own, 30053, [(far, 53)], 17)
    sent = arrives(node, client, own, udp(1000, 30053))
    port = tuple_of(sent.packet)[1]
    quoted = network(own, far) / udp(port, 53)
    from scapy.all import ICMPv6DestUnreach

    error = (ICMPv6DestUnreach(code=4) if v6 else ICMP(type=3, code=3)) / quoted
    got = arrives(node, far, own, error)
    assert got.verdict == TC_ACT_REDIRECT
    assert checksums_hold(got.packet)
    seen = parse(got.packet)
    inside = (IPv6 if v6 else IP)(raw(seen[2].payload))
    assert (seen[1].src, seen[1].dst) == (own, client)
    assert (inside.src, inside.sport, inside.dst, inside.dport) == (client, 1000, own, 30053)


def test_a_backend_that_is_gone_is_replaced_for_what_may_still_open(node: Node, pod: Pod) -> None:
    node.ipcache("10.244.2.5", 4711)
    node.ipcache("10.244.2.6", 4711)
    expose(node, 5, NODE4, 30080, [("10.244.2.5", 80)])
    arrives(node, WORLD4, NODE4, tcp(50000, 30080))
    arrives(node, WORLD4, NODE4, tcp(50001, 30080))
    arrives(node, "10.244.2.5", NODE4, tcp(80, 50001, "SA"))
    expose(node, 5, NODE4, 30080, [("10.244.2.6", 80)])
    assert tuple_of(arrives(node, WORLD4, NODE4, tcp(50000, 30080)).packet)[2] == "10.244.2.6"
    assert tuple_of(arrives(node, WORLD4, NODE4, tcp(50001, 30080, "A")).packet)[2] == "10.244.2.5"
    assert len(table(node)) == 4


def test_the_same_client_port_at_two_frontends_of_one_backend(node: Node, pod: Pod) -> None:
    """To a backend that sees the client both would be one connection: the second is refused, not mixed up."""
    for service, address in ((5, NODE4), (6, "192.0.2.80")):
        expose(node, service, address, 30080, [(pod.ipv4, 80)], local=(pod.ipv4,))
    assert arrives(node, WORLD4, NODE4, tcp(50000, 30080)).verdict == TC_ACT_REDIRECT
    assert arrives(node, WORLD4, "192.0.2.80", tcp(50000, 30080)).verdict == TC_ACT_SHOT
    assert arrives(node, WORLD4, NODE4, tcp(50000, 30080, "A")).verdict == TC_ACT_REDIRECT


def test_forwarded_packets_are_not_taken_for_the_nodes_own(node: Node, pod: Pod) -> None:
    """The node has the port already: a SNATed packet gets another one and leaves as it is."""
    node.ipcache("10.244.2.5", 4711)
    expose(node, 5, NODE4, 30080, [("10.244.2.5", 80)])
    leaves(node, NODE4, "10.244.2.5", tcp(50000, 80))
    there = arrives(node, WORLD4, NODE4, tcp(50000, 30080))
    port = tuple_of(there.packet)[1]
    assert port != 50000
    marked = node.run("to_netdev", there.packet, uplink(node), mark=0xC1110002)
    assert (marked.verdict, marked.packet) == (TC_ACT_OK, there.packet)


def test_expired_time_to_live(node: Node, pod: Pod) -> None:
    node.ipcache("10.244.2.5", 4711)
    expose(node, 5, NODE4, 30080, [("10.244.2.5", 80)])
    assert arrives(node, WORLD4, NODE4, tcp(50000, 30080), ttl=1).verdict == TC_ACT_SHOT
    assert dropped(node) == [DropReason.TTL_EXCEEDED]
