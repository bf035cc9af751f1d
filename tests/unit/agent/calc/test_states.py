"""Every scenario of `states`, every way through it: packets meet what the state says, and nothing is left behind."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest

from services.agent.abi.endpoints import EndpointInfo
from services.agent.calc.engine import Engine
from tests.unit.agent.calc.kernel import Kernel
from tests.unit.agent.calc.states import EXPANDERS, SCENARIOS, Expander, Packet, State, as_declared


def meets(kernel: Kernel, packet: Packet) -> str:
    address = ipaddress.ip_address(packet.peer) if isinstance(packet.peer, str) else None
    peer = kernel.identity(address) if address is not None else packet.peer
    outcome, rules, _ = kernel.verdict(packet.endpoint, packet.direction, peer, packet.protocol, packet.port, address)
    return "http" if rules else outcome


def comparable(maps: Mapping[Any, Mapping[bytes, bytes]]) -> dict[str, dict[bytes, bytes]]:
    """Maps but for the policy revision, which counts flushes."""
    found = {name: dict(content) for name, content in maps.items()}
    for key, raw in found["endpoints"].items():
        info = EndpointInfo.unpack(raw)
        info.policy_revision = 0
        found["endpoints"][key] = info.pack()
    return found


def fresh(state: State) -> Engine:
    engine = Engine("node1", sources=())
    for update in state.updates.values():
        engine.apply(update)
    engine.flush()
    return engine


@pytest.mark.parametrize("expand", EXPANDERS, ids=lambda expand: expand.__name__)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, expand: Expander) -> None:
    engine, kernel = Engine("node1", sources=()), Kernel()
    for updates, state in expand(SCENARIOS[scenario]):
        for update in updates:
            engine.apply(update)
        if state is None:
            continue
        kernel.apply(engine.flush())
        assert kernel.maps == {name: dict(content) for name, content in engine.desired().items()}
        for packet, expected in state.packets.items():
            assert meets(kernel, packet) == expected, packet
        if state.updates:
            assert comparable(kernel.maps) == comparable(fresh(state).desired())
        assert not engine.flush()


REFUSED = {"deny", "drop"}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_between_two_writes_a_packet_meets_the_old_verdict_or_the_new(scenario: str) -> None:
    """Maps are not changed at once: after each single write, nothing may be allowed that neither state allows."""
    states = SCENARIOS[scenario]
    packets = sorted({packet for state in states for packet in state.packets}, key=repr)
    engine, kernel = Engine("node1", sources=()), Kernel()
    for updates, _ in as_declared([*states, *reversed(states)]):
        before = {packet: meets(kernel, packet) for packet in packets}
        for update in updates:
            engine.apply(update)
        changes = engine.flush()
        final = Kernel.of(engine)
        after = {packet: meets(final, packet) for packet in packets}
        for change in changes:
            kernel.apply([change])
            for packet in packets:
                now = meets(kernel, packet)
                allowed = {before[packet], after[packet]}
                assert now in allowed or (now in REFUSED and allowed & REFUSED), (packet, now, allowed, change)
