"""The hooks on the node's own devices: put, replaced, taken away, and harmless while nothing is configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.agent.datapath import attach
from tests.datapath.node import TC_ACT_OK, Node, sh
from tests.datapath.packets import network, parse, tcp
from tests.datapath.wire import WiredNode

pytestmark = pytest.mark.root


def filters(node: Node, device: str) -> str:
    return sh("tc", "filter", "show", "dev", device, "ingress", netns=node.name) + sh(
        "tc", "filter", "show", "dev", device, "egress", netns=node.name
    )


def test_hooks_come_and_go_without_touching_those_of_others(object_cache: Path) -> None:
    node = WiredNode(object_cache, 1)
    try:
        sh("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "second", netns=node.name)
        first, second = node._ifindex("uplink"), node._ifindex("second")
        sh("tc", "qdisc", "add", "dev", "uplink", "clsact", netns=node.name)
        foreign = f"tc filter add dev uplink ingress prio 7 bpf object-pinned {node.root}/progs/from_netdev"
        sh(*foreign.split(), netns=node.name)
        for _ in range(2):  # the second time in place of the first
            for ifindex in (first, second):
                node.in_netns(attach.attach_netdev(ifindex, node.root / "progs"))
        for device in ("uplink", "second"):
            assert filters(node, device).count("pref 1 bpf chain 0 handle 0x1 from_netdev") == 1
            assert filters(node, device).count("pref 1 bpf chain 0 handle 0x1 to_netdev") == 1
        assert node.in_netns(attach.detach_netdev(keep=[second])) == [first]
        assert "pref 1 " not in filters(node, "uplink")
        assert "pref 7 bpf" in filters(node, "uplink")
        assert "from_netdev" in filters(node, "second")
        assert node.in_netns(attach.detach_netdev()) == [second]
        assert node.in_netns(attach.detach_netdev()) == []
    finally:
        node.close()


@pytest.mark.parametrize("hook", ["from_netdev", "to_netdev"])
def test_nothing_configured_nothing_touched(node: Node, hook: str) -> None:
    packet = bytes(parse(b"\xff" * 14) / network("192.168.77.9", "192.168.77.1") / tcp(4000, 80))
    for raw in (packet, b"\xff" * 12 + b"\x88\xcc" + bytes(50)):
        result = node.run(hook, raw, node.ifindexes[0])
        assert (result.verdict, result.packet) == (TC_ACT_OK, raw)
    assert len(node.events()) == 0
