"""The compiled translation against its reference: random packets, few ports, so that they meet and run out."""

from __future__ import annotations

import random

import pytest

from services.agent.abi.config import ConfigFlags
from services.agent.datapath.fake_nat import Outcome, Translator, Tuple5
from tests.datapath.gateway import NODE4, NODE6, WORLD4, WORLD6, arrives, leaves, prepare, table
from tests.datapath.node import TC_ACT_SHOT, Node
from tests.datapath.packets import checksums_hold, parse, tcp, udp
from tests.datapath.walks import FAMILIES, Pods, at

pytestmark = pytest.mark.root

PORTS = (40000, 40005)
STEPS = 250


def tuple_of(packet: bytes, protocol: int) -> Tuple5:
    seen = parse(packet)
    return Tuple5(seen[1].src, seen[1].dst, seen[2].sport, seen[2].dport, protocol)


@FAMILIES
@pytest.mark.parametrize("seed", range(3))
def test_random_packets(node: Node, pods: Pods, v6: bool, seed: int) -> None:
    chance = random.Random(seed)
    prepare(node, PORTS, flags=ConfigFlags.MASQUERADE)
    own, world = (NODE6, WORLD6) if v6 else (NODE4, WORLD4)
    near, other = ("fd00:10:244:2::5", "2001:db8::10") if v6 else ("10.244.2.5", "203.0.113.10")
    node.ipcache(near, 4711)
    addresses = [at(pod, v6) for pod in pods]
    model = Translator(own, range(PORTS[0], PORTS[1] + 1), addresses, lambda address: address == near)
    drops = 0
    for _ in range(STEPS):
        layer, protocol = chance.choice([(tcp, 6), (udp, 17)])
        if chance.random() < 0.6:
            packet = Tuple5(
                chance.choice([*addresses, own]),
                chance.choice([world, world, other, near]),
                chance.choice([1000, 40000, 40001, 40002, 50000]),
                chance.choice([53, 443]),
                protocol,
            )
            got = leaves(node, packet.source, packet.destination, layer(packet.sport, packet.dport))
            expected = model.leaving(packet)
            if expected is Outcome.DROPPED:
                assert got.verdict == TC_ACT_SHOT, packet
                drops += 1
                continue
            became = tuple_of(got.packet, protocol)
            if expected is Outcome.AS_IT_IS:
                assert became == packet
                continue
            assert isinstance(expected, list)
            assert became in expected, packet
            model.learn(packet, became)
        else:
            packet = Tuple5(
                chance.choice([world, other]),
                own,
                chance.choice([53, 443]),
                chance.randint(PORTS[0] - 1, PORTS[1] + 1),
                protocol,
            )
            flags = {"flags": "A"} if protocol == 6 else {}
            got = arrives(node, packet.source, packet.destination, layer(packet.sport, packet.dport, **flags))
            assert tuple_of(got.packet, protocol) == model.arriving(packet), packet
        assert checksums_hold(got.packet)
    assert drops, "ports never ran out: the test is too tame"
    assert len(table(node)) == 2 * len(model.made)
