"""Packets from outside that do not fit into the way to their backend: against the reference, and what senders get."""

from __future__ import annotations

import struct
from itertools import product
from typing import Any

import pytest
from scapy.all import ICMP, IP, UDP, Ether, ICMPv6PacketTooBig, IPv6ExtHdrFragment, raw

from services.agent.abi.config import ConfigFlags
from services.agent.abi.endpoints import EndpointFlags
from services.agent.abi.layout import be16
from services.agent.abi.lb import ServiceFlags
from services.agent.abi.nat import NatEntry, NatFlags, NatKey, NatWay
from services.agent.datapath import syscall
from services.agent.datapath.fake_path import DSR_OPTION, Fate, Sent, Way, fate
from services.model.verdict import DropReason
from tests.datapath.gateway import (
    FAR,
    NODE4,
    NODE6,
    PEER4,
    PEER6,
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
)
from tests.datapath.node import TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, Node, Pod, inside, ip, ipaddress, sh
from tests.datapath.packets import checksums_hold, from_pod, network, parse, tcp, udp
from tests.datapath.walks import FAMILIES, INGRESS, Pods, at

pytestmark = pytest.mark.root

XDP_PASS = 2
OVERLAY = 9999
SERVICE = 30053
WAYS = (Way(1500), Way(1400), Way(1400, overlay=4), Way(1340, overlay=4), Way(1400, overlay=6), Way(1340, overlay=6))


def ends(v6: bool) -> tuple[str, str, str]:
    """(node, client, remote backend)"""
    return (NODE6, WORLD6, FAR[v6]) if v6 else (NODE4, WORLD4, FAR[v6])


@pytest.fixture
def pod(node: Node, pods: Pods) -> Pod:
    prepare(node, flags=ConfigFlags.NORTH_SOUTH)
    route(node)
    node.open(pods[0], INGRESS)
    return pods[0]


def narrow(node: Node, way: Way) -> None:
    """Backends elsewhere are reached so."""
    flags = ConfigFlags.NORTH_SOUTH
    for line in (
        f"ip route replace 10.244.2.0/24 via 192.168.77.5 dev host3 mtu lock {way.mtu}",
        f"ip -6 route replace fd00:10:244:2::/64 via fd00:77::5 dev host3 mtu lock {way.mtu}",
        f"ip -6 route replace {PEER6} dev host3 mtu lock {way.mtu}",
    ):
        sh(*line.split(), netns=node.name)
    if not way.overlay:
        node.settings(nat_ports=(32768, 65535), flags=flags | ConfigFlags.NATIVE_ROUTING)
    else:
        node.settings(
            nat_ports=(32768, 65535),
            flags=flags,
            overlay_ifindex=OVERLAY,
            path_mtu=way.room,
            tunnel_address=ipaddress.ip_address(NODE6 if way.overlay == 6 else NODE4),
        )
    for v6 in (False, True):
        node.ipcache(ends(v6)[2], 4711, {0: "", 4: PEER4, 6: PEER6}[way.overlay])


def of_size(size: int, v6: bool, dport: int = SERVICE) -> Any:
    return udp(50000, dport, b"x" * (size - (48 if v6 else 28)))


def told(packet: bytes, v6: bool) -> tuple[int, bytes]:
    """(what would fit, what is quoted) of an answer."""
    seen = parse(packet)
    assert checksums_hold(packet)
    assert len(packet) - 14 <= (1280 if v6 else 576)
    if v6:
        assert (seen[ICMPv6PacketTooBig].type, seen[ICMPv6PacketTooBig].code) == (2, 0)
        return seen[ICMPv6PacketTooBig].mtu, packet[14 + 48 :]
    assert (seen[ICMP].type, seen[ICMP].code) == (3, 4)
    return seen[ICMP].nexthopmtu, packet[14 + 28 :]


def what_became(node: Node, sent: bytes, v6: bool) -> tuple[Fate, int]:
    """Of a client's packet. An answer must quote it as it was sent, and come from whom it was sent to."""
    got = node.run("from_netdev", sent, uplink(node))
    drops = [int(e["drop_reason"]) for e in node.events() if e["drop_reason"]]
    if drops:
        assert drops == [DropReason.PACKET_TOO_LARGE]
        if got.verdict == TC_ACT_SHOT:
            return Fate.LOST, 0
        assert got.verdict == TC_ACT_REDIRECT
        mtu, quoted = told(got.packet, v6)
        assert len(quoted) > 500
        assert quoted == sent[14 : 14 + len(quoted)]
        before, after = parse(sent), parse(got.packet)
        assert (after.src, after.dst) == (before.dst, before.src)
        assert (after[1].src, after[1].dst) == (before[1].dst, before[1].src)
        return Fate.TOLD, mtu
    assert checksums_hold(got.packet)
    assert parse(got.packet)[1].dst == ends(v6)[2]
    return (Fate.SENT if got.verdict == TC_ACT_REDIRECT else Fate.CUT), 0


@FAMILIES
@pytest.mark.parametrize("way", WAYS, ids=["wide", "route", "over4", "over4 narrow", "over6", "over6 narrow"])
def test_the_reference_agrees(node: Node, pod: Pod, v6: bool, way: Way) -> None:
    narrow(node, way)
    own, client, far = ends(v6)
    version = 6 if v6 else 4
    for direct, may_be_cut in product((False, True), (False,) if v6 else (False, True)):
        edge = way.room - (DSR_OPTION[version] if direct else 0)
        for size in sorted(
            {600, 1256, 1257, 1280, 1281, edge, edge + 1, way.room, way.room + 1, 1470, 1476, 1499, 1500}
        ):
            if direct and may_be_cut and size > 1500 - DSR_OPTION[version]:
                continue  # such a connection is opened by SNAT
            table_of_node = node.map("nat_table")
            table_of_node.delete_batch([key for key, _ in table_of_node.items()])
            expose(node, 5, own, SERVICE, [(far, 80)], 17, flags=ServiceFlags.DSR if direct else 0)
            fields = {} if v6 else {"flags": "" if may_be_cut else "DF"}
            sent = frame(client, own, of_size(size, v6), **fields)
            expected = fate(Sent(version, size, may_be_cut, direct), way)
            assert what_became(node, sent, v6) == expected, (size, direct, may_be_cut)


@FAMILIES
def test_segments_are_measured_not_what_they_came_in(node: Node, pod: Pod, v6: bool) -> None:
    narrow(node, Way(1400))
    own, client, far = ends(v6)
    expose(node, 5, own, 30080, [(far, 80)])
    headers = 60 if v6 else 40
    arrives(node, client, own, tcp(50000, 30080))
    many = frame(client, own, tcp(50000, 30080, "A", b"y" * 3000), **({} if v6 else {"flags": "DF"}))
    assert node.run("from_netdev", many, uplink(node), gso=1400 - headers).verdict == TC_ACT_REDIRECT
    assert not [e for e in node.events() if e["drop_reason"]]
    got = node.run("from_netdev", many, uplink(node), gso=1401 - headers)
    assert told(got.packet, v6)[0] == 1400
    assert [int(e["drop_reason"]) for e in node.events()] == [DropReason.PACKET_TOO_LARGE]


@FAMILIES
def test_who_is_not_told(node: Node, pod: Pod, v6: bool) -> None:
    narrow(node, Way(1400))
    own, client, far = ends(v6)
    expose(node, 5, own, SERVICE, [(far, 80)], 17)
    many = "ff05::1" if v6 else "239.1.1.1"
    fields = {} if v6 else {"flags": "DF"}
    for to, source in (("ff:ff:ff:ff:ff:ff", client), ("01:00:5e:01:01:01", client), ("", many)):
        sent = parse(frame(source, own, of_size(1450, v6), **fields))
        sent.dst = to or sent.dst
        assert what_became(node, bytes(raw(sent)), v6) == (Fate.LOST, 0), (to, source)
    # A later fragment says nothing about whose it is.
    if v6:
        first = network(client, own) / IPv6ExtHdrFragment(m=1, id=7, nh=17) / raw(of_size(1400, v6))
        later = network(client, own) / IPv6ExtHdrFragment(offset=170, id=7, nh=17) / (b"z" * 1400)
    else:
        first = network(client, own, flags="MF+DF", id=7, proto=17) / raw(of_size(1450, v6))
        later = network(client, own, flags="DF", frag=175, id=7, proto=17) / (b"z" * 1400)
    packets = [bytes(raw(Ether(src="02:00:00:00:77:01", dst="02:00:00:00:77:02") / p)) for p in (first, later)]
    got = node.run("from_netdev", packets[0], uplink(node))
    mtu, quoted = told(got.packet, v6)
    assert (mtu, quoted) == (1400, packets[0][14 : 14 + len(quoted)])
    assert node.run("from_netdev", packets[1], uplink(node)).verdict == TC_ACT_SHOT


@FAMILIES
def test_xdp_leaves_them_to_tc(node: Node, pod: Pod, v6: bool) -> None:
    own, client, far = ends(v6)
    for way in WAYS[1:]:
        narrow(node, way)
        expose(node, 5, own, SERVICE, [(far, 80)], 17)
        sent = frame(client, own, of_size(1450, v6), **({} if v6 else {"flags": "DF"}))
        context = struct.pack("<6I", 0, len(sent), 0, uplink(node), 0, 0)
        with inside(node.name):
            got = syscall.prog_test_run(node.prog("xdp_netdev"), sent, context)
        assert (got.verdict, got.packet) == (XDP_PASS, sent)


@FAMILIES
@pytest.mark.parametrize("sender", ["client", "pod", "node"])
def test_what_the_stack_sends_by_the_overlay(node: Node, pod: Pod, v6: bool, sender: str) -> None:
    """Over IPv6 it may be too large all the same: the stack knows the overlay device, not the way."""
    narrow(node, Way(1400, overlay=6))
    own, client, far = ends(v6)
    source = {"client": client, "pod": at(pod, v6), "node": own}[sender]
    fields = {} if v6 else {"flags": "DF"}
    for size, fate_of_it in ((1330, TC_ACT_OK), (1331, TC_ACT_REDIRECT)):
        sent = frame(source, far, of_size(size, v6, 80), **fields)
        got = node.run("to_overlay", sent, uplink(node))
        assert got.verdict == fate_of_it
    assert told(got.packet, v6) == (1330, sent[14:][: len(got.packet) - 14 - (48 if v6 else 28)])
    answer = parse(got.packet)
    assert (answer[1].src, answer[1].dst) == (far, source)
    if sender != "client":
        assert answer.dst == (pod.mac if sender == "pod" else "00:00:00:00:00:00")
    assert [int(e["drop_reason"]) for e in node.events() if e["drop_reason"]] == [DropReason.PACKET_TOO_LARGE]


@FAMILIES
def test_a_pod_of_this_node_behind_a_queue(node: Node, pod: Pod, v6: bool) -> None:
    """Limited ingress goes by the node's side of the veth, which takes no more than its MTU."""
    own, client, _ = ends(v6)
    expose(node, 5, own, SERVICE, [(at(pod, v6), 80)], 17, local=(at(pod, v6),))
    pod.flags = EndpointFlags.INGRESS_RATE
    node.put_pod(pod)
    sh(*["ip", "link", "set", "host0", "mtu", "1400"], netns=node.name)
    for size in (1400, 1401):
        sent = frame(client, own, of_size(size, v6), **({} if v6 else {"flags": "DF"}))
        got = node.run("from_netdev", sent, uplink(node))
        assert got.verdict == TC_ACT_REDIRECT
    mtu, quoted = told(got.packet, v6)
    assert (mtu, quoted) == (1400, sent[14:][: len(quoted)])
    assert (parse(got.packet).dst, parse(got.packet)[1].src) == (parse(sent).src, own)
    assert [int(e["drop_reason"]) for e in node.events() if e["drop_reason"]] == [DropReason.PACKET_TOO_LARGE]


@FAMILIES
@pytest.mark.parametrize("service", [False, True], ids=["pod", "service"])
def test_pods_own_packets(node: Node, pod: Pod, v6: bool, service: bool) -> None:
    """Quoted as the pod wrote them, also where they were on their way to a Service."""
    narrow(node, Way(1400, overlay=6))
    far, vip = ends(v6)[2], "fd00:10:96::10" if v6 else "10.96.0.10"
    node.service(41, vip, 53, [(far, 80)], 17)
    whole = {} if v6 else {"flags": "DF"}
    sent = from_pod(pod, vip if service else far, of_size(1331, v6, 53 if service else 80), **whole)
    for fields in ({}, {"path_mtu": 1450}):
        node.settings(overlay_ifindex=OVERLAY, tunnel_address=ipaddress.ip_address(NODE6), **fields)
        got = node.run("from_endpoint", sent, pod.ifindex)
        assert got.verdict == TC_ACT_REDIRECT
        mtu, quoted = told(got.packet, v6)
        assert (mtu, quoted) == (1330, sent[14:][: len(quoted)])
        assert parse(got.packet).dst == pod.mac
        (drop,) = (e for e in node.events() if e["drop_reason"])
        assert (drop["endpoint_id"], drop["drop_reason"]) == (pod.id, DropReason.PACKET_TOO_LARGE)


@FAMILIES
def test_answers_by_an_egress_gateway(node: Node, pod: Pod, v6: bool) -> None:
    """The server out there is told about the packet that it had sent to the gateway's address."""
    narrow(node, Way(1400, overlay=6))
    own, server, far = ends(v6)
    original = NatKey(saddr=ip(far), daddr=ip(server), sport=be16(80), dport=be16(50000), protocol=17, way=NatWay.OUT)
    becomes = NatEntry(saddr=ip(own), daddr=ip(server), sport=be16(40000), dport=be16(50000), expires_ns=2**63)
    node.map("nat_table").update(original.pack(), becomes.pack())
    answer = frame(server, far, of_size(1400, v6, 80), **({} if v6 else {"flags": "DF"}))
    back = node.run("to_overlay", answer, uplink(node))
    assert back.verdict == TC_ACT_REDIRECT
    out = node.run("to_netdev", back.packet, uplink(node))
    assert out.verdict == TC_ACT_OK
    mtu, quoted = told(out.packet, v6)
    wrote = frame(server, own, of_size(1400, v6, 40000), **({} if v6 else {"flags": "DF"}))[14:]
    at_checksum = 46 if v6 else 26
    assert (mtu, quoted[:at_checksum]) == (1330, wrote[:at_checksum])
    assert (parse(out.packet)[1].src, parse(out.packet)[1].dst) == (own, server)


@FAMILIES
def test_errors_are_not_answered(node: Node, pod: Pod, v6: bool) -> None:
    narrow(node, Way(1400))
    own, client, far = ends(v6)
    expose(node, 5, own, SERVICE, [(far, 80)], 17)
    arrives(node, client, own, of_size(600, v6))
    quoted = network(own, client) / udp(SERVICE, 50000, b"q" * 1380)
    error = (ICMPv6PacketTooBig(mtu=1280) if v6 else ICMP(type=3, code=4, nexthopmtu=1280)) / quoted
    router = "2001:db8::fe" if v6 else "198.51.100.254"
    node.events()
    got = arrives(node, router, own, error, **({} if v6 else {"flags": "DF"}))
    assert got.verdict == TC_ACT_SHOT
    assert [int(e["drop_reason"]) for e in node.events()] == [DropReason.PACKET_TOO_LARGE]


@FAMILIES
def test_a_backend_learns_that_its_client_is_behind_a_narrow_way(node: Node, pod: Pod, v6: bool) -> None:
    """Its own packet is quoted, not what the client would have got."""
    own, client, _ = ends(v6)
    hop = "fd00:77::fe" if v6 else "192.168.77.254"
    sh(*f"ip {'-6 ' if v6 else ''}route replace {client} via {hop} dev host3 mtu lock 1400".split(), netns=node.name)
    try:
        expose(node, 5, own, SERVICE, [(at(pod, v6), 80)], 17, local=(at(pod, v6),))
        assert arrives(node, client, own, of_size(600, v6)).verdict == TC_ACT_REDIRECT
        node.events()
        answer = udp(80, 50000, b"y" * 1400)
        sent = from_pod(pod, client, answer, **({} if v6 else {"flags": "DF"}))
        got = node.run("from_endpoint", sent, pod.ifindex)
        assert got.verdict == TC_ACT_REDIRECT
        mtu, quoted = told(got.packet, v6)
        assert (mtu, quoted) == (1400, sent[14 : 14 + len(quoted)])
        assert parse(got.packet)[1].dst == at(pod, v6)
        (drop,) = (e for e in node.events() if e["drop_reason"])
        assert (drop["endpoint_id"], drop["drop_reason"]) == (pod.id, DropReason.PACKET_TOO_LARGE)
    finally:
        sh(*f"ip {'-6 ' if v6 else ''}route del {client}".split(), netns=node.name)


def test_the_stack_cuts_and_the_pieces_leave_as_the_nodes(node: Node, pod: Pod) -> None:
    """The stack gets the client's address, which it forwards; on the way out each piece gets the node's."""
    narrow(node, Way(1400))
    own, client, far = ends(False)
    expose(node, 5, own, SERVICE, [(far, 80)], 17)
    got = arrives(node, client, own, of_size(1450, False))
    assert got.verdict == TC_ACT_OK
    seen = parse(got.packet)
    assert (seen[IP].src, seen[UDP].sport, seen[IP].dst, seen[UDP].dport) == (client, 50000, far, 80)
    whole = raw(seen[IP].payload)
    for more, offset, piece in ((1, 0, whole[:1376]), (0, 172, whole[1376:])):
        packet = network(client, far, flags=more, frag=offset, id=9, proto=17) / piece
        out = node.run("to_netdev", bytes(raw(Ether() / packet)), uplink(node))
        assert (out.verdict, parse(out.packet)[IP].src) == (TC_ACT_OK, own)
        if more:
            assert parse(out.packet)[UDP].sport == 50000
    assert len(table(node)) == 3
    # One end of it is no backend's, so that collection does not take the client for one that is gone.
    (entry,) = (e for e in table(node).values() if e.flags & NatFlags.DSR)
    assert entry.service_id == 0
    assert leaves(node, client, far, udp(50001, 80)).packet == frame(client, far, udp(50001, 80))
