"""Pods of two nodes that talk over the wire: plain routing, our overlay, our native routing.

A node is a network namespace, the wire is a veth pair; every pod has the MTU that fits into the overlay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from bench._pair import advance, bare
from services.agent.abi.config import ConfigFlags
from services.agent.abi.events import LANES
from services.agent.datapath import attach
from services.model.verdict import Direction
from tests.datapath.node import inside, sh
from tests.datapath.wire import WiredNode

KINDS = ("plain", "overlay", "native")
CLIENT, SERVER, PORT = 1001, 1002, 80
PLACES = 32_768
EVENTS = LANES["events"][1]
"""Bytes of events, as an agent has them: tests make do with less."""


def _wire(one: WiredNode, two: WiredNode) -> None:
    """A link, and routes to each other's pods over it."""
    peer = ("peer", "name", "uplink", "netns", two.name)
    sh("ip", "link", "add", "uplink", "mtu", str(one.mtu), "type", "veth", *peer, netns=one.name)
    for node in (one, two):
        sh("ip", "addr", "add", f"{node.address}/24", "dev", "uplink", netns=node.name)
        sh("ip", "link", "set", "uplink", "up", netns=node.name)
    for node, other in ((one, two), (two, one)):
        sh("ip", "route", "add", f"10.244.{other.number}.0/24", "via", other.address, netns=node.name)


def _plain(one: WiredNode, two: WiredNode) -> None:
    _wire(one, two)
    bare(one)
    bare(two)


def _overlay(one: WiredNode, two: WiredNode) -> None:
    one.join(two)
    for node in (one, two):
        overlay = node.config().overlay_ifindex
        with inside(node.name):
            attach.advance(overlay, node.root / "progs", attach.OVERLAY_AHEAD)
        advance(node)
        node.settings(overlay_ifindex=overlay, ct_queue_places=PLACES)


def _native(one: WiredNode, two: WiredNode) -> None:
    _wire(one, two)
    for node, other in ((one, two), (two, one)):
        advance(node)
        node.settings(flags=ConfigFlags.NATIVE_ROUTING, ct_queue_places=PLACES)
        uplink = int(sh("ip", "-o", "link", "show", "uplink", netns=node.name).split(":")[0])
        node.in_netns(attach.attach_netdev(uplink, node.root / "progs"))
        node.ipcache(node.address, 1)
        node.ipcache(other.address, 6)
        for pod in other.pods.values():
            node.ipcache(pod.ipv4, pod.identity)


JOIN: dict[str, Callable[[WiredNode, WiredNode], None]] = {"plain": _plain, "overlay": _overlay, "native": _native}


@contextlib.contextmanager
def pairs(cache: Path, prepare: Callable[[str], None]) -> Iterator[dict[str, tuple[WiredNode, WiredNode]]]:
    """By kind: the client's node and the server's, policed but for the plain ones. `prepare` is called with each pod's
    namespace."""
    with contextlib.ExitStack() as stack:
        found = {}
        for kind in KINDS:
            nodes = []
            for number in (1, 2):
                node = WiredNode(cache, number, ct=262_144, ct_queue=PLACES, events=EVENTS)
                stack.callback(node.close)
                node.settings()
                pod = node.add_pod(1, CLIENT if number == 1 else SERVER)
                prepare(node.pod_ns(pod))
                for identity in range(2000, 2100):  # a policy of some size around the rule that matters
                    node.rule(pod, Direction.INGRESS, identity, 6, PORT)
                nodes.append(node)
            one, two = nodes
            one.rule(one.pods[1], Direction.EGRESS, SERVER, 6, PORT, rule_id=12)
            two.rule(two.pods[1], Direction.INGRESS, CLIENT, 6, PORT, rule_id=11)
            JOIN[kind](one, two)
            found[kind] = one, two
        yield found
