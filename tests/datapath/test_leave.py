"""How pods' packets leave the node: paced, to an egress gateway, or through a pod's own queue; step by step."""

from __future__ import annotations

import ipaddress
import struct
import time

import pytest

from services.agent.abi.config import ConfigFlags
from services.agent.abi.egress import SOURCE_BITS, EgressEntry, EgressFlags, EgressKey
from services.agent.abi.endpoints import EndpointFlags
from services.model.addresses import prefix_to_key
from services.model.verdict import DropReason
from tests.datapath.node import TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, Node, Pod, ip, u32
from tests.datapath.packets import tcp, to_pod, udp
from tests.datapath.walks import FAMILIES, OTHER, Pods, at, send

pytestmark = pytest.mark.root

TSTAMP = 152
"""Offset in `struct __sk_buff`."""
NODE2 = "192.168.77.2"
MARK_DELIVERED = 0xC1110003
WORLD = {False: "203.0.113.10", True: "2001:db8::10"}


@pytest.fixture
def paced(node: Node, pods: Pods) -> Pod:
    """The first pod, with 100 kB/s, and another node's pod to talk to."""
    node.settings(overlay_ifindex=node.ifindexes[3], flags=ConfigFlags.PACING)
    node.ipcache("10.244.2.1", OTHER, NODE2)
    node.map("bandwidth").update(u32(1), (100_000).to_bytes(8, "little"))
    node.map("pacing").update(u32(1), bytes(8))
    return pods[0]


def departure(context: bytes) -> int:
    return int(struct.unpack_from("<Q", context, TSTAMP)[0])


def test_each_packet_gets_its_departure(node: Node, paced: Pod) -> None:
    # The first one at once.
    assert departure(send(node, paced, "10.244.2.1", udp(4000, 53)).context) == 0
    # Those behind a queue: 1,000 bytes with headers take ten milliseconds each.
    base = time.monotonic_ns() + 1_500_000_000
    node.map("pacing").update(u32(1), base.to_bytes(8, "little"))
    sent = [send(node, paced, "10.244.2.1", udp(4000, 53, bytes(958))) for _ in range(4)]
    assert [done.verdict for done in sent] == [TC_ACT_REDIRECT] * 4
    assert [departure(done.context) - base for done in sent] == [0, 10_000_000, 20_000_000, 30_000_000]
    # Nobody else waits, nor does what stays on the node.
    other = node.pods[3]
    assert departure(send(node, other, "10.244.2.1", udp(4000, 53)).context) == 0
    assert departure(send(node, paced, other.ipv4, udp(4000, 53)).context) == 0


def test_too_late_is_never(node: Node, paced: Pod) -> None:
    node.map("pacing").update(u32(1), (time.monotonic_ns() + 3_000_000_000).to_bytes(8, "little"))
    node.events()
    assert send(node, paced, "10.244.2.1", udp(4000, 53)).verdict == TC_ACT_SHOT
    assert node.events()["drop_reason"].tolist()[-1] == DropReason.REACHED_EDT_RATE_LIMITING_DROP_HORIZON


def gateway(node: Node, pod: Pod, destination: str, **fields: object) -> None:
    v6 = ":" in destination
    length, raw = prefix_to_key(ipaddress.ip_network(destination))
    key = EgressKey(prefixlen=SOURCE_BITS + length, source=ip(at(pod, v6)), destination=raw)
    node.map("egress_gateway").update(key.pack(), EgressEntry(**fields).pack())


@FAMILIES
def test_egress_gateways(node: Node, pods: Pods, v6: bool) -> None:
    pod, _, other = pods
    node.settings(overlay_ifindex=node.ifindexes[3], flags=ConfigFlags.EGRESS_GATEWAY)
    wide, narrow = ("2001:db8::/32", "2001:db8::10/128") if v6 else ("203.0.113.0/24", "203.0.113.10/32")
    expected = [
        ({"gateway": ip(NODE2)}, TC_ACT_REDIRECT, 0),
        ({}, TC_ACT_SHOT, DropReason.NO_EGRESS_GATEWAY),
        ({"flags": EgressFlags.HERE}, TC_ACT_SHOT, DropReason.DROP_NO_EGRESS_IP),
        ({"flags": EgressFlags.HERE, "address": ip("192.168.77.9")}, TC_ACT_OK, 0),
        ({"flags": EgressFlags.EXCLUDED}, TC_ACT_OK, 0),
    ]
    for number, (entry, verdict, reason) in enumerate(expected):
        gateway(node, pod, wide, **entry)
        node.events()
        assert send(node, pod, WORLD[v6], tcp(4000 + number, 80)).verdict == verdict, entry
        assert (node.events()["drop_reason"].tolist() or [0])[-1] == reason
    # The longest prefix; and pods that no policy selects go their way.
    gateway(node, pod, wide)
    gateway(node, pod, narrow, gateway=ip(NODE2))
    assert send(node, pod, WORLD[v6], tcp(5000, 80)).verdict == TC_ACT_REDIRECT
    assert send(node, other, WORLD[v6], tcp(5000, 80)).verdict == TC_ACT_OK
    # What somebody outside opened is answered the way it came.
    node.run("to_endpoint", to_pod(pod, WORLD[v6], tcp(6000, 80)), pod.ifindex)
    gateway(node, pod, narrow)
    answer = send(node, pod, WORLD[v6], tcp(80, 6000, "SA", ack=1))
    assert answer.verdict == TC_ACT_OK


def test_a_pods_queue_is_on_the_nodes_side(node: Node, pods: Pods) -> None:
    """A packet for a pod with limited ingress goes by the node's interface, and is not judged there a second time."""
    frontend, webapp, _ = pods
    webapp.flags = EndpointFlags.INGRESS_RATE
    node.put_pod(webapp)
    done = send(node, frontend, webapp.ipv4, tcp(4000, 80))
    assert done.verdict == TC_ACT_REDIRECT
    assert struct.unpack_from("<I", done.context, 8)[0] == MARK_DELIVERED
    node.events()
    again = node.run("to_endpoint", done.packet, webapp.ifindex, mark=MARK_DELIVERED)
    assert again.verdict == TC_ACT_OK
    assert struct.unpack_from("<I", again.context, 8)[0] == 0
    assert not len(node.events())
    # Without the mark it is a packet like any other.
    assert node.run("to_endpoint", to_pod(webapp, "10.244.1.9", tcp(4001, 81)), webapp.ifindex).verdict == TC_ACT_SHOT


def test_nobody_outside_of_the_overlay_has_a_remote_pods_address(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.ipcache("10.244.2.1", frontend.identity, NODE2)
    node.events()
    assert node.run("to_endpoint", to_pod(webapp, "10.244.2.1", tcp(4000, 80)), webapp.ifindex).verdict == TC_ACT_SHOT
    assert node.events()["drop_reason"].tolist() == [DropReason.INVALID_SOURCE_IP]
    node.ipcache("10.244.2.1", frontend.identity)  # native routing: no tunnel
    assert node.run("to_endpoint", to_pod(webapp, "10.244.2.1", tcp(4000, 80)), webapp.ifindex).verdict == TC_ACT_OK


def test_native_packets_of_local_pods_come_from_nowhere_else(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.settings(flags=ConfigFlags.NATIVE_ROUTING)
    node.ipcache("10.244.2.1", frontend.identity)
    node.events()
    spoofed = node.run("from_netdev", to_pod(webapp, frontend.ipv4, tcp(4000, 80)), node.ifindexes[3])
    assert spoofed.verdict == TC_ACT_SHOT
    assert node.events()["drop_reason"].tolist() == [DropReason.INVALID_SOURCE_IP]
    true = node.run("from_netdev", to_pod(webapp, "10.244.2.1", tcp(4000, 80)), node.ifindexes[3])
    assert true.verdict == TC_ACT_REDIRECT
    assert node.events()["rule_id"].tolist() == [77]
    assert (
        node.run("from_netdev", to_pod(webapp, "10.244.2.1", tcp(4001, 81)), node.ifindexes[3]).verdict == TC_ACT_SHOT
    )
