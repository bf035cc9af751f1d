"""DSR in Geneve, packet by packet: what leaves for the backend's node, byte for byte, and what is taken from one."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from scapy.all import IP, Ether, IPv6, raw
from scapy.contrib import geneve as geneve_layer

from services.agent.abi.config import ConfigFlags
from services.agent.abi.lb import ServiceFlags
from services.agent.abi.nat import NatFlags
from services.agent.datapath import syscall
from services.agent.datapath.fake_dsr import DSR_CLASS, DSR_TYPE, Around, checksum, unwrap, wrap
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
    prepare,
    route,
    table,
    uplink,
)
from tests.datapath.node import TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, Node, Pod, inside, ip
from tests.datapath.node import WORLD4 as WORLD_IDENTITY
from tests.datapath.packets import checksums_hold, from_pod, parse, ping, sctp_data, sctp_init, tcp, udp
from tests.datapath.walks import FAMILIES, INGRESS, Pods, at

pytestmark = pytest.mark.root

GENEVE = 6081
OWN = {False: NODE4, True: NODE6}
CLIENT = {False: WORLD4, True: WORLD6}
UNDERLAYS = pytest.mark.parametrize("underlay6", [False, True], ids=["over4", "over6"])


@pytest.fixture
def pod(node: Node, pods: Pods) -> Pod:
    """A backend that anybody may reach; the node serves the outside, and knows another node and a pod there."""
    prepare(node)
    configured(node)
    route(node)
    node.open(pods[0], INGRESS)
    for peer in (PEER4, PEER6):
        node.ipcache(peer, 6)
    return pods[0]


def configured(node: Node, port: int = GENEVE, flags: int = ConfigFlags.NATIVE_ROUTING) -> None:
    node.settings(dsr_port=port, flags=ConfigFlags.NORTH_SOUTH | flags)


def there(node: Node, v6: bool, underlay6: bool, identity: int = 4711) -> str:
    """A pod of the other node."""
    node.ipcache(FAR[v6], identity, PEER6 if underlay6 else PEER4, routed=True)
    return FAR[v6]


def bare(address: str) -> bytes:
    return ip(address) if ":" in address else ip(address)[12:]


def around(v6: bool, underlay6: bool, *, sent: bool, service: str = "", port: int = 30080) -> Around:
    """What the other node puts around a client's packet, or this one (`sent`)."""
    own, peer = (NODE6, PEER6) if underlay6 else (NODE4, PEER4)
    ends = (own, peer) if sent else (peer, own)
    return Around(*map(bare, ends), GENEVE, WORLD_IDENTITY + v6, bare(service or OWN[v6]), port)


def told(node: Node, packet: bytes) -> Any:
    return node.run("from_netdev", packet, uplink(node))


def dropped(node: Node) -> list[int]:
    return [int(e["drop_reason"]) for e in node.events() if e["drop_reason"]]


@FAMILIES
@UNDERLAYS
@pytest.mark.parametrize(
    ("layer", "protocol"),
    [(tcp, 6), (udp, 17), (sctp_init, 132), (lambda s, d: udp(s, d, b"x" * 1300), 17)],
    ids=["tcp", "udp", "sctp", "large"],
)
def test_what_opens_a_connection_goes_in_geneve(
    node: Node, pod: Pod, v6: bool, underlay6: bool, layer: Any, protocol: int
) -> None:
    far = there(node, v6, underlay6)
    expose(node, 5, OWN[v6], 30080, [(far, 80)], protocol, ServiceFlags.DSR)
    sent = arrives(node, CLIENT[v6], OWN[v6], layer(50000, 30080))
    assert sent.verdict == TC_ACT_REDIRECT
    inner = frame(CLIENT[v6], far, layer(50000, 80), ttl=63)
    assert sent.packet == wrap(inner, around(v6, underlay6, sent=True))
    ((_, entry),) = table(node).items()
    assert entry.flags & NatFlags.DSR


@FAMILIES
def test_the_rest_of_a_connection_goes_as_it_is(node: Node, pod: Pod, v6: bool) -> None:
    far = there(node, v6, False)
    for protocol in (6, 132):
        expose(node, 5, OWN[v6], 30080, [(far, 80)], protocol, ServiceFlags.DSR)
    for first, later, after in (
        (tcp(50000, 30080), tcp(50000, 30080, "A"), tcp(50000, 80, "A")),
        (sctp_init(50000, 30080), sctp_data(50000, 30080, 100), sctp_data(50000, 80, 100)),
    ):
        assert len(arrives(node, CLIENT[v6], OWN[v6], first).packet) > 14 + 70
        more = arrives(node, CLIENT[v6], OWN[v6], later)
        assert (more.verdict, more.packet) == (TC_ACT_REDIRECT, frame(CLIENT[v6], far, after, ttl=63))


@FAMILIES
@UNDERLAYS
@pytest.mark.parametrize("overlay", [False, True], ids=["native", "overlay"])
@pytest.mark.parametrize(("layer", "protocol"), [(tcp, 6), (udp, 17), (sctp_init, 132)], ids=["tcp", "udp", "sctp"])
def test_the_backends_node_takes_it_off_and_answers(
    node: Node, pod: Pod, v6: bool, underlay6: bool, overlay: bool, layer: Any, protocol: int
) -> None:
    configured(node, flags=0 if overlay else ConfigFlags.NATIVE_ROUTING)
    service = "2001:db8:80::1" if v6 else "192.0.2.80"
    expose(node, 5, service, 80, [(at(pod, v6), 80)], protocol, ServiceFlags.DSR)
    inner = frame(CLIENT[v6], at(pod, v6), layer(50000, 80), ttl=63)
    got = told(node, wrap(inner, around(v6, underlay6, sent=False, service=service, port=80)))
    assert got.verdict == TC_ACT_REDIRECT
    assert got.packet[14:] == frame(CLIENT[v6], at(pod, v6), layer(50000, 80), ttl=62)[14:]
    (event,) = node.events()
    assert (event["endpoint_id"], event["service_id"]) == (pod.id, 5)
    assert event["src_identity"] == WORLD_IDENTITY + v6
    answer = tcp(80, 50000, "SA") if protocol == 6 else udp(80, 50000) if protocol == 17 else sctp_data(80, 50000, 8)
    back = node.run("from_endpoint", from_pod(pod, CLIENT[v6], answer), pod.ifindex)
    assert back.verdict == TC_ACT_REDIRECT
    seen = parse(back.packet)
    assert (seen[1].src, seen[2].sport, seen[1].dst, seen[2].dport) == (service, 80, CLIENT[v6], 50000)
    assert checksums_hold(back.packet)


def plain(v6: bool) -> dict[str, Any]:
    """Who goes by SNAT: nobody knows the backend's node, or it is a node itself."""
    return {
        "no node is known": lambda node: node.ipcache(FAR[v6], 4711),
        "not in the table": lambda node: None,
        "a host network": lambda node: node.ipcache(FAR[v6], 6, PEER4, routed=True),
    }


@FAMILIES
@pytest.mark.parametrize("case", plain(False))
def test_what_cannot_go_in_geneve_goes_by_snat(node: Node, pod: Pod, v6: bool, case: str) -> None:
    plain(v6)[case](node)
    expose(node, 5, OWN[v6], 30080, [(FAR[v6], 80)], 6, ServiceFlags.DSR)
    sent = parse(arrives(node, CLIENT[v6], OWN[v6], tcp(50000, 30080)).packet)
    assert (sent[1].src, sent[1].dst, sent[2].dport) == (OWN[v6], FAR[v6], 80)


@FAMILIES
@UNDERLAYS
def test_the_header_counts(node: Node, pod: Pod, v6: bool, underlay6: bool) -> None:
    """The largest datagram that fits with it, and one byte more: that opens by SNAT. Where the connection is open its
    sender is told what fits; what may be cut relies on the datagram before."""
    far = there(node, v6, underlay6)
    expose(node, 5, OWN[v6], 30080, [(far, 80)], 17, ServiceFlags.DSR)
    mtu = 1500 - (40 if underlay6 else 20) - 20 - (16 if v6 else 4) - 18
    room = mtu - (40 if v6 else 20) - 8
    fits = arrives(node, CLIENT[v6], OWN[v6], udp(50000, 30080, b"x" * room))
    assert len(fits.packet) == 1514
    too_large = udp(50000, 30080, b"x" * (room + 1))
    opens = parse(arrives(node, CLIENT[v6], OWN[v6], udp(50001, 30080, b"x" * (room + 1))).packet)
    assert (opens[1].src, opens[1].dst) == (OWN[v6], far)
    answer = parse(arrives(node, CLIENT[v6], OWN[v6], too_large, **({} if v6 else {"flags": "DF"})).packet)
    assert (answer[1].src, answer[1].dst) == (OWN[v6], CLIENT[v6])
    assert (answer[2].mtu if v6 else answer[2].nexthopmtu) == mtu
    if not v6:
        more = arrives(node, WORLD4, NODE4, too_large)
        assert more.packet == frame(WORLD4, far, udp(50000, 80, b"x" * (room + 1)), ttl=63)


def offloaded(node: Node, packet: bytes, size: int) -> syscall.RunResult:
    """`gso_size` is the 176th byte of struct __sk_buff."""
    context = struct.pack("<11I", *[0] * 10, uplink(node)).ljust(176, b"\0") + struct.pack("<4I", size, 0, 0, 0)
    with inside(node.name):
        return syscall.prog_test_run(node.prog("from_netdev"), packet, context)


def test_offloaded_packets_and_fragments(node: Node, pod: Pod) -> None:
    """Of a datagram in pieces the first one tells; of many datagrams in one, none does, and none is believed."""
    far = there(node, False, False)
    expose(node, 5, NODE4, 30080, [(far, 80)], 17, ServiceFlags.DSR)
    whole = frame(WORLD4, NODE4, udp(50000, 30080, b"x" * 600))
    several = parse(offloaded(node, whole, 200).packet)
    assert (several[IP].src, several[IP].dst) == (NODE4, far)

    first = frame(WORLD4, NODE4, udp(50001, 30080, b"x" * 512), flags="MF", id=99)
    later = frame(WORLD4, NODE4, b"y" * 80, frag=65, id=99, proto=17)
    inner = frame(WORLD4, far, udp(50001, 80, b"x" * 512), flags="MF", id=99, ttl=63)
    assert told(node, first).packet == wrap(inner, around(False, False, sent=True))
    assert told(node, later).packet == frame(WORLD4, far, b"y" * 80, frag=65, id=99, proto=17, ttl=63)

    inner = frame(WORLD4, pod.ipv4, tcp(50000, 80), ttl=63)
    node.events()
    assert offloaded(node, wrap(inner, around(False, False, sent=False)), 40).verdict == TC_ACT_SHOT
    assert dropped(node) == [DropReason.INVALID_PACKET_DROPPED]


def opt(class_: int, type_: int, value: bytes = b"", words: int | None = None) -> bytes:
    return struct.pack(">HBB", class_, type_, len(value) // 4 if words is None else words) + value


def geneve(options: bytes, inner: bytes, *, first: int | None = None, flags: int = 0x40, kind: int = 0x6558) -> bytes:
    head = struct.pack(">BBHI", len(options) // 4 if first is None else first, flags, kind, WORLD_IDENTITY << 8)
    return head + options + inner


def sent_by(source: str, payload: bytes, udp_length: int = 0, destination: str = NODE4, **fields: Any) -> bytes:
    length = udp_length or 8 + len(payload)
    return frame(source, destination, struct.pack(">4H", 0xC123, GENEVE, length, 0) + payload, proto=17, **fields)


INNER = frame(WORLD4, "10.244.1.1", tcp(50000, 80), ttl=63)
GOOD = opt(DSR_CLASS, DSR_TYPE, bare(NODE4) + struct.pack(">HH", 30080, 0))
OTHER = opt(0x0102, 0x01, bytes(8))
GOOD6 = opt(DSR_CLASS, DSR_TYPE, bare(NODE6) + struct.pack(">HH", 30080, 0))
TAKEN = {
    "alone": geneve(GOOD, INNER),
    "behind one that is unknown": geneve(OTHER + GOOD, INNER),
    "before one": geneve(GOOD + opt(0xFFFF, 0x7F), INNER),
    "reserved bits": geneve(opt(DSR_CLASS, DSR_TYPE, GOOD[4:], 0xE2), INNER, flags=0x7F),
    "among eight": geneve(OTHER * 7 + GOOD, INNER),
}
INVALID, OPTION = DropReason.INVALID_PACKET_DROPPED, DropReason.INVALID_GENEVE_OPTION
REFUSED = {
    "version 1": (sent_by(PEER4, geneve(GOOD, INNER, first=0x43)), INVALID),
    "control": (sent_by(PEER4, geneve(GOOD, INNER, flags=0xC0)), INVALID),
    "bare IP inside": (sent_by(PEER4, geneve(GOOD, INNER[14:], kind=0x0800)), INVALID),
    "too short for its header": (sent_by(PEER4, geneve(GOOD, INNER)[:7]), INVALID),
    "options beyond the end": (sent_by(PEER4, geneve(GOOD, INNER, first=63)), INVALID),
    "nothing inside": (sent_by(PEER4, geneve(GOOD, b"")), INVALID),
    "no packet inside": (sent_by(PEER4, geneve(GOOD, INNER[: 14 + 19])), INVALID),
    "a piece of a packet inside": (sent_by(PEER4, geneve(GOOD, INNER[:-4])), INVALID),
    "UDP too short": (sent_by(PEER4, geneve(GOOD, INNER), 60), INVALID),
    "UDP too long": (sent_by(PEER4, geneve(GOOD, INNER), 600), INVALID),
    "outer options": (sent_by(PEER4, geneve(GOOD, INNER), options=[b"\x01\x01\x01\x01"]), INVALID),
    "outer fragment": (sent_by(PEER4, geneve(GOOD, INNER), flags="MF"), DropReason.IP_FRAGMENTATION_NOT_SUPPORTED),
    "no option": (sent_by(PEER4, geneve(b"", INNER)), OPTION),
    "another option": (sent_by(PEER4, geneve(OTHER, INNER)), OPTION),
    "twice": (sent_by(PEER4, geneve(GOOD * 2, INNER)), OPTION),
    "unknown and critical": (sent_by(PEER4, geneve(GOOD + opt(0x0102, 0x81), INNER)), OPTION),
    "ours, unknown and critical": (sent_by(PEER4, geneve(GOOD + opt(DSR_CLASS, 0x82), INNER)), OPTION),
    "an option too long": (sent_by(PEER4, geneve(GOOD + opt(0x0102, 1, words=3), INNER)), OPTION),
    "cut short": (sent_by(PEER4, geneve(GOOD[:-4], INNER)), OPTION),
    "one word less": (sent_by(PEER4, geneve(opt(DSR_CLASS, DSR_TYPE, bytes(4)), INNER)), OPTION),
    "nine": (sent_by(PEER4, geneve(OTHER * 8 + GOOD, INNER)), OPTION),
    "of the other family": (sent_by(PEER4, geneve(GOOD6, INNER)), DropReason.UNSUPPORTED_L3_PROTOCOL),
    "from outside": (sent_by(WORLD4, geneve(GOOD, INNER)), DropReason.UNKNOWN_SENDER),
    "from a pod": (sent_by("10.244.2.5", geneve(GOOD, INNER)), DropReason.UNKNOWN_SENDER),
    "from ourselves": (sent_by(NODE4, geneve(GOOD, INNER)), DropReason.UNKNOWN_SENDER),
    "ARP inside": (
        sent_by(PEER4, geneve(GOOD, INNER[:12] + b"\x08\x06" + bytes(28))),
        DropReason.UNSUPPORTED_L3_PROTOCOL,
    ),
    "a ping inside": (
        sent_by(PEER4, geneve(GOOD, frame(WORLD4, "10.244.1.1", ping()))),
        DropReason.UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP,
    ),
    "link-local inside": (sent_by(PEER4, geneve(GOOD, frame(WORLD4, "224.0.0.5", udp(1, 2)))), INVALID),
    "in a pod's name": (
        sent_by(PEER4, geneve(GOOD, frame("10.244.2.5", "10.244.1.1", tcp(50000, 80)))),
        DropReason.INVALID_SOURCE_IP,
    ),
    "in a node's name": (
        sent_by(PEER4, geneve(GOOD, frame(PEER4, "10.244.1.1", tcp(50000, 80)))),
        DropReason.INVALID_SOURCE_IP,
    ),
    "for a pod elsewhere": (
        sent_by(PEER4, geneve(GOOD, frame(WORLD4, "10.244.2.5", tcp(50000, 80)))),
        DropReason.STALE_OR_UNROUTABLE_IP,
    ),
    "for the node itself": (
        sent_by(PEER4, geneve(GOOD, frame(WORLD4, NODE4, tcp(50000, 22)))),
        DropReason.STALE_OR_UNROUTABLE_IP,
    ),
    "for no Service": (
        sent_by(PEER4, geneve(opt(DSR_CLASS, DSR_TYPE, bare("203.0.113.66") + GOOD[8:]), INNER)),
        DropReason.SERVICE_BACKEND_NOT_FOUND,
    ),
}


@pytest.fixture
def backend(node: Node, pod: Pod) -> Node:
    there(node, False, False)
    expose(node, 5, NODE4, 30080, [(pod.ipv4, 80)], 6, ServiceFlags.DSR)
    return node


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken(backend: Node, case: str) -> None:
    got = told(backend, sent_by(PEER4, TAKEN[case]))
    assert (got.verdict, len(table(backend))) == (TC_ACT_REDIRECT, 1)
    assert got.packet[14:] == frame(WORLD4, "10.244.1.1", tcp(50000, 80), ttl=62)[14:]


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_opens_nothing(backend: Node, case: str) -> None:
    packet, reason = REFUSED[case]
    assert told(backend, packet).verdict == TC_ACT_SHOT
    assert dropped(backend) == [reason]
    assert not table(backend)


def test_other_packets_to_that_port_are_nobodys_business(backend: Node) -> None:
    """Somebody else's Geneve that this node forwards; and all of it where DSR does not use it."""
    foreign = sent_by(PEER4, geneve(GOOD, INNER), destination="203.0.113.7")
    assert (told(backend, foreign).verdict, told(backend, foreign).packet) == (TC_ACT_OK, foreign)
    configured(backend, port=0)
    ours = sent_by(PEER4, geneve(GOOD, INNER))
    assert (told(backend, ours).verdict, told(backend, ours).packet) == (TC_ACT_OK, ours)


@FAMILIES
@UNDERLAYS
def test_random_packets(node: Node, pod: Pod, v6: bool, underlay6: bool) -> None:
    """Bytes of the tunnel's headers by chance: kernel and reference agree on every one."""
    chance = random.Random(v6 * 2 + underlay6)
    expose(node, 5, OWN[v6], 30080, [(at(pod, v6), 80)], 6, ServiceFlags.DSR)
    good = wrap(frame(CLIENT[v6], at(pod, v6), tcp(50000, 80), ttl=63), around(v6, underlay6, sent=False))
    first = 14 + (40 if underlay6 else 20) + 4
    last = len(good) - len(frame(CLIENT[v6], at(pod, v6), tcp(50000, 80))) + 14
    outcomes = set()
    for _ in range(300):
        packet = bytearray(good)
        for _ in range(chance.choice((1, 1, 2))):
            at_ = chance.randrange(first, last)
            packet[at_] ^= 1 << chance.randrange(8) if chance.random() < 0.7 else chance.randrange(1, 256)
        packet[first + 2 : first + 4] = bytes(2)
        expected = unwrap(bytes(packet))
        if not isinstance(expected, DropReason) and expected[1:] != (bare(OWN[v6]), 30080):
            expected = DropReason.SERVICE_BACKEND_NOT_FOUND
        got = told(node, bytes(packet))
        if isinstance(expected, DropReason):
            assert (got.verdict, dropped(node)) == (TC_ACT_SHOT, [expected]), bytes(packet).hex()
        else:
            assert got.verdict == TC_ACT_REDIRECT, bytes(packet).hex()
            assert parse(got.packet)[1].dst == parse(expected[0])[1].dst
            assert got.packet[14 + 20 :][-20:] == expected[0][-20:]
        outcomes.add(expected if isinstance(expected, DropReason) else None)
    assert {None, INVALID, OPTION, DropReason.SERVICE_BACKEND_NOT_FOUND} <= outcomes, "too tame"


def test_the_reference_against_another_reader() -> None:
    """The header by itself, read by scapy: fields where RFC 8926 has them."""
    for v6 in (False, True):
        inner = frame(CLIENT[v6], FAR[v6], tcp(50000, 80))
        seen = Ether(wrap(inner, around(v6, v6, sent=True)))
        assert checksum(raw(seen)[14:34]) == 0 or v6
        outer = seen[IPv6 if v6 else IP]
        assert (seen.payload[1].chksum, seen.payload[1].dport) == (0, GENEVE)
        assert outer.payload.len == len(raw(seen)) - 14 - (40 if v6 else 20)
        header = geneve_layer.GENEVE(raw(outer.payload.payload))
        assert (header.version, header.oam, header.critical, header.proto) == (0, 0, 1, 0x6558)
        assert (header.vni, header.optionlen) == (WORLD_IDENTITY + v6, 6 if v6 else 3)
        (option,) = header.options
        assert (option.classid, option.type, option.length) == (DSR_CLASS, DSR_TYPE, 5 if v6 else 2)
        assert raw(option)[4:] == bare(OWN[v6]) + struct.pack(">HH", 30080, 0)
        assert raw(header.payload) == inner
