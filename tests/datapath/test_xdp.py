"""XDP does what the tc programs do, byte for byte, or leaves the packet alone."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.all import ICMP, IP, UDP, VXLAN, Ether, IPv6, raw

from services.agent.abi.config import ConfigFlags
from services.agent.abi.lb import ServiceFlags
from services.agent.datapath import syscall
from services.agent.datapath.xdp import Mode, XdpHooks
from services.common.errors import Unavailable
from services.model.addresses import IPAddress
from tests.datapath.gateway import (
    NODE4,
    NODE6,
    WORLD4,
    WORLD6,
    expose,
    frame,
    prepare,
    route,
    table,
    uplink,
)
from tests.datapath.node import TC_ACT_REDIRECT, Node, inside, ipaddress, sh, u32
from tests.datapath.outside import NODE_PORT, World, ask, build, client, close, pod_at, publish, serving, withdraw
from tests.datapath.packets import checksums_hold, parse, ping, tcp, udp
from tests.datapath.walks import FAMILIES, INGRESS, Pods, at

pytestmark = pytest.mark.root

XDP_PASS, XDP_TX = 2, 3
LAYERS = pytest.mark.parametrize(("layer", "protocol"), [(tcp, 6), (udp, 17)], ids=["tcp", "udp"])
GATEWAY, NEIGHBOR = "02:00:00:00:77:fe", "02:00:00:00:77:05"


@pytest.fixture
def entrance(node: Node, pods: Pods) -> Node:
    """A node that serves the outside and knows its neighbours: two backends there, the way to the world."""
    prepare(node, flags=ConfigFlags.NORTH_SOUTH)
    route(node)
    sh("ip", "link", "set", "pod3", "up", netns=node.name)
    for address, mac in (
        ("192.168.77.254", GATEWAY),
        ("fd00:77::fe", GATEWAY),
        ("192.168.77.5", NEIGHBOR),
        ("fd00:77::5", NEIGHBOR),
    ):
        sh(*f"ip neigh replace {address} lladdr {mac} dev host3 nud permanent".split(), netns=node.name)
    for prefix, via in (("10.244.2.0/24", "192.168.77.5"), ("fd00:10:244:2::/64", "fd00:77::5")):
        six = "-6 " if ":" in prefix else ""
        sh(*f"ip {six}route replace {prefix} via {via} dev host3".split(), netns=node.name)
    node.open(pods[0], INGRESS)
    return node


def ends(v6: bool) -> tuple[str, str, str]:
    """(node, client, remote backend)"""
    return (NODE6, WORLD6, "fd00:10:244:2::5") if v6 else (NODE4, WORLD4, "10.244.2.5")


def xdp(node: Node, packet: bytes) -> syscall.RunResult:
    """The packet arrives at the uplink."""
    context = struct.pack("<6I", 0, len(packet), 0, uplink(node), 0, 0)
    with inside(node.name):
        return syscall.prog_test_run(node.prog("xdp_netdev"), packet, context)


def clear(node: Node) -> None:
    node.map("nat_table").delete_batch([key.pack() for key in table(node)])


@FAMILIES
@LAYERS
def test_the_same_as_tc(entrance: Node, v6: bool, layer: Any, protocol: int) -> None:
    own, source, far = ends(v6)
    entrance.ipcache(far, 4711)
    expose(entrance, 5, own, 30080, [(far, 80)], protocol)
    for payload in (b"", b"x", b"hello, world"):
        there = layer(50000, 30080, payload=payload)
        clear(entrance)
        early = xdp(entrance, frame(source, own, there))
        made = table(entrance)
        assert early.verdict == XDP_TX
        clear(entrance)
        late = entrance.run("from_netdev", frame(source, own, there), uplink(entrance))
        assert late.verdict == TC_ACT_REDIRECT
        assert early.packet[14:] == late.packet[14:]
        assert checksums_hold(early.packet)
        assert (parse(early.packet).src != parse(early.packet).dst, parse(early.packet).dst) == (True, NEIGHBOR)
        again = table(entrance)
        assert set(made) == set(again)
        for key in made:
            assert bytes(made[key])[:48] == bytes(again[key])[:48]  # all but the times

        back = frame(far, own, layer(80, 50000, payload=payload))
        answer, other = xdp(entrance, back), entrance.run("from_netdev", back, uplink(entrance))
        assert answer.verdict == XDP_TX
        assert answer.packet[14:] == other.packet[14:]
        assert checksums_hold(answer.packet)
        assert parse(answer.packet).dst == GATEWAY


def test_a_datagram_without_a_checksum_keeps_none(entrance: Node) -> None:
    own, source, far = ends(False)
    entrance.ipcache(far, 4711)
    expose(entrance, 5, own, 30053, [(far, 53)], 17)
    sent = frame(source, own, UDP(sport=50000, dport=30053, chksum=0) / b"x")
    got = xdp(entrance, sent)
    assert (got.verdict, parse(got.packet)[UDP].chksum) == (XDP_TX, 0)


@FAMILIES
def test_the_overlay(entrance: Node, v6: bool) -> None:
    own, source, far = ends(v6)
    address: IPAddress = ipaddress.ip_address(NODE4)
    entrance.settings(flags=ConfigFlags.NORTH_SOUTH, overlay_ifindex=9999, tunnel_address=address)
    entrance.ipcache(far, 4711, "192.168.77.5")
    expose(entrance, 5, own, 30080, [(far, 80)])
    got = xdp(entrance, frame(source, own, tcp(50000, 30080, payload=b"data")))
    assert got.verdict == XDP_TX
    outer = Ether(got.packet)
    assert (outer.dst, outer[IP].src, outer[IP].dst, outer[UDP].dport) == (NEIGHBOR, NODE4, "192.168.77.5", 8472)
    assert outer[UDP].chksum == 0  # VXLAN over IPv4 needs none
    assert outer[IP].len == len(got.packet) - 14
    assert outer[UDP].len == len(got.packet) - 34
    checksum = outer[IP].chksum
    del outer[IP].chksum
    assert IP(raw(outer[IP])).chksum == checksum
    tunnel = VXLAN(raw(outer[UDP].payload))
    assert tunnel.vni == 1  # the node's word
    assert tunnel[Ether].payload == parse(frame(own, far, tcp(50000, 80, payload=b"data"), ttl=63)).payload
    assert checksums_hold(raw(tunnel[Ether]))
    assert IPv6 in tunnel if v6 else IP in tunnel


@FAMILIES
def test_what_is_left_to_tc(entrance: Node, pods: Pods, v6: bool) -> None:
    own, source, far = ends(v6)
    local = at(pods[0], v6)
    entrance.ipcache(far, 4711)
    expose(entrance, 5, own, 30080, [(local, 80)], local=(local,))
    expose(entrance, 6, own, 30081, [(far, 80)], flags=ServiceFlags.DSR)
    expose(entrance, 7, own, 30082, [], flags=ServiceFlags.REFUSE)
    expose(entrance, 8, own, 30083, [(far, 80)], flags=ServiceFlags.SOURCE_RANGES)
    unknown = "fd00:77::99" if v6 else "192.168.77.99"
    expose(entrance, 9, own, 30084, [(unknown, 80)])  # its MAC is to be asked for
    packets = [frame(source, own, tcp(50000, port)) for port in (30080, 30081, 30082, 30083, 30084, 22)]
    packets += [
        frame(source, own, ping(v6)),
        frame(source, local, tcp(50000, 80)),
        frame(source, own, tcp(50000, 30080), ttl=1),
        frame(source, own, tcp(50000, 30081))[:40],
        b"\xff" * 12 + b"\x08\x06" + bytes(40),
    ]
    if not v6:
        quoted = IP(src=own, dst=source) / tcp(30080, 50000)
        packets += [
            frame(source, own, udp(50000, 30080), flags="MF"),
            frame(source, own, tcp(50000, 30081), options=[b"\x01\x01\x01\x01"]),
            frame(source, own, ICMP(type=3, code=4) / quoted),
        ]
    for packet in packets:
        if len(packet) < 14 + 20:
            continue
        got = xdp(entrance, packet)
        assert (got.verdict, got.packet) == (XDP_PASS, packet)


def test_open_connections_of_dsr(entrance: Node) -> None:
    own, source, far = ends(False)
    entrance.ipcache(far, 4711)
    expose(entrance, 6, own, 30081, [(far, 80)], flags=ServiceFlags.DSR)
    entrance.run("from_netdev", frame(source, own, tcp(50000, 30081)), uplink(entrance))
    got = xdp(entrance, frame(source, own, tcp(50000, 30081, "A")))
    assert got.verdict == XDP_TX
    assert got.packet[14:] == frame(source, far, tcp(50000, 80, "A"), ttl=63)[14:]


def test_off_means_off(entrance: Node) -> None:
    own, source, far = ends(False)
    expose(entrance, 5, own, 30080, [(far, 80)])
    entrance.settings()
    packet = frame(source, own, tcp(50000, 30080))
    assert xdp(entrance, packet).packet == packet


def finish_checksums(netns: str, device: str) -> None:
    """Packets leave the device complete, as from a wire: virtual ones put it off."""
    value = ctypes.create_string_buffer(struct.pack("II", 0x17, 0))  # ETHTOOL_STXCSUM
    request = struct.pack("16sQ", device.encode(), ctypes.addressof(value))
    with inside(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock.fileno(), 0x8946, request)


def forwarded(node: Node) -> int:
    """Packets that XDP sent on."""
    return sum(struct.unpack_from("<Q", value)[0] for value in node.map("metrics").lookup_percpu(u32(0)))


@pytest.fixture(scope="module", params=[True, False], ids=["overlay", "native"])
def world(request: pytest.FixtureRequest, object_cache: Path) -> Iterator[World]:
    made = build(object_cache, request.param)
    try:
        finish_checksums(made.name, "node1")
        finish_checksums(made.two.name, "uplink")
        with inside(made.one.name):
            hooks = XdpHooks(made.one.root, Mode.GENERIC)
            device = [made.one._ifindex("uplink")]
            assert hooks.attach(device) == device
            assert XdpHooks(made.one.root, Mode.GENERIC).attach(device) == device  # an agent that comes back
        yield made
    finally:
        close(made.name, [made.one, made.two])


@FAMILIES
@pytest.mark.parametrize("protocol", [6, 17], ids=["tcp", "udp"])
def test_real_packets(world: World, v6: bool, protocol: int) -> None:
    withdraw(world)
    publish(world, None, world.far, v6, protocol)
    before = forwarded(world.one)
    payload = os.urandom(200_000 if protocol == 6 else 1200)
    with serving(world.two.pod_ns(world.far), pod_at(world.far, v6), protocol) as seen:
        for _ in range(2):  # the first one finds no neighbours
            assert ask(world.name, client(v6), world.one.at(v6), NODE_PORT, protocol, payload) == payload
    assert set(seen) == {world.one.at(v6)}
    assert forwarded(world.one) > before


def test_hooks_come_and_go(world: World) -> None:
    def attached() -> bool:
        return "xdp" in sh("ip", "link", "show", "uplink", netns=world.one.name)

    def gone() -> bool:
        for _ in range(100):  # the kernel lets go of a link in its own time
            if not attached():
                return True
            time.sleep(0.05)
        return False

    with inside(world.one.name):
        device = world.one._ifindex("uplink")
        assert attached()
        assert XdpHooks(world.one.root, Mode.AUTO).attach([device]) == []  # a virtual device
        assert gone()
        hooks = XdpHooks(world.one.root, Mode.NATIVE)
        assert hooks.attach([device]) == [device]
        assert attached()
        with pytest.raises(Unavailable, match="xdp"):
            hooks.attach([device, 999_999])
        hooks.detach()
        assert gone()
