"""Nobody serves: the client is told at once. And what the kernel's stacks make of the answers."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.all import ICMP, IP, TCP, UDP, Ether, ICMPv6DestUnreach, IPv6, raw

from services.agent.abi.lb import ServiceFlags
from services.model.verdict import DropReason
from tests.datapath.node import TC_ACT_REDIRECT, TC_ACT_SHOT, Node, inside
from tests.datapath.packets import checksums_hold, parse, tcp, udp
from tests.datapath.walks import FAMILIES, Pods, at, seen, send
from tests.datapath.wire import WiredNode

pytestmark = pytest.mark.root

VIP = {False: "10.96.0.10", True: "fd00:10:96::10"}


@FAMILIES
@pytest.mark.parametrize(
    ("l4", "flags", "seq", "ack"),
    [
        (tcp(4000, 80, seq=1000), "RA", 0, 1001),
        (tcp(4000, 80, payload=b"early", seq=0xFFFFFFFE), "RA", 0, 4),
    ],
    ids=["syn", "syn with data"],
)
def test_tcp_is_reset(node: Node, pods: Pods, v6: bool, l4: Any, flags: str, seq: int, ack: int) -> None:
    frontend, _, _ = pods
    node.service(41, VIP[v6], 80, [], flags=ServiceFlags.REFUSE)
    done = send(node, frontend, VIP[v6], l4)
    assert done.verdict == TC_ACT_REDIRECT
    assert seen(node)[-1][3] == DropReason.SERVICE_BACKEND_NOT_FOUND
    answer = parse(done.packet)
    layer = answer[IPv6 if v6 else IP]
    assert (layer.src, layer.dst, answer[Ether].dst) == (VIP[v6], at(frontend, v6), frontend.mac)
    segment = answer[TCP]
    assert (segment.sport, segment.dport, segment.flags, segment.seq, segment.ack) == (80, 4000, flags, seq, ack)
    assert checksums_hold(done.packet)


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 1200])
def test_udp_is_unreachable(node: Node, pods: Pods, v6: bool, size: int) -> None:
    frontend, _, _ = pods
    node.service(41, VIP[v6], 80, [], 17, flags=ServiceFlags.REFUSE)
    done = send(node, frontend, VIP[v6], udp(4000, 80, b"y" * size))
    assert done.verdict == TC_ACT_REDIRECT
    answer = parse(done.packet)
    layer = answer[IPv6 if v6 else IP]
    assert (layer.src, layer.dst) == (VIP[v6], at(frontend, v6))
    error = answer[ICMPv6DestUnreach] if v6 else answer[ICMP]
    assert (error.type, error.code) == ((1, 4) if v6 else (3, 3))
    quoted = (IPv6 if v6 else IP)(raw(layer.payload)[8:])
    assert (quoted.src, quoted.dst, quoted[UDP].sport, quoted[UDP].dport) == (at(frontend, v6), VIP[v6], 4000, 80)
    fresh = parse(done.packet)
    wanted = fresh[ICMPv6DestUnreach].cksum if v6 else fresh[ICMP].chksum
    if v6:
        del fresh[ICMPv6DestUnreach].cksum
        assert Ether(raw(fresh))[ICMPv6DestUnreach].cksum == wanted
    else:
        del fresh[ICMP].chksum
        assert Ether(raw(fresh))[ICMP].chksum == wanted
        del fresh[IP].chksum
        assert Ether(raw(fresh))[IP].chksum == answer[IP].chksum


def test_without_the_flag_it_is_dropped(node: Node, pods: Pods) -> None:
    """Behind `externalTrafficPolicy: Local` other nodes may serve: clients are to try them."""
    frontend, _, _ = pods
    node.service(41, VIP[False], 80, [])
    assert send(node, frontend, VIP[False], tcp(4000, 80)).verdict == TC_ACT_SHOT


@pytest.fixture(scope="module")
def wired(object_cache: Path) -> Iterator[WiredNode]:
    node = WiredNode(object_cache, 1)
    try:
        node.settings()
        yield node
    finally:
        node.close()


@FAMILIES
def test_sockets_fail_at_once(wired: WiredNode, v6: bool) -> None:
    pod = wired.add_pod(1 + v6, 1001)
    wired.open(pod)
    family = socket.AF_INET6 if v6 else socket.AF_INET
    for protocol in (6, 17):
        wired.service(41, VIP[v6], 80, [], protocol, flags=ServiceFlags.REFUSE)
    started = time.monotonic()
    with inside(wired.pod_ns(pod)):
        stream, datagram = socket.socket(family), socket.socket(family, socket.SOCK_DGRAM)
    with stream, datagram:
        stream.settimeout(3)
        assert stream.connect_ex((VIP[v6], 80)) == errno.ECONNREFUSED
        datagram.settimeout(3)
        datagram.connect((VIP[v6], 80))
        datagram.send(b"x" * 900)
        with pytest.raises(ConnectionRefusedError):
            datagram.recv(1)
    assert time.monotonic() - started < 1
