"""Dividing identities: into as few parts as rules tell apart, under numbers that mean the same on every run."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import pytest

from services.agent.calc.refined import Ports, Refinements
from services.model.addresses import IPAddress
from services.model.identity import is_refined
from services.model.labels import Labels
from services.policy.peers import IpBlockPeer, Party
from services.policy.selectors import LabelView

VIEW = LabelView(Labels([]))
NONE: Ports = frozenset()


def block(prefix: str, *excepts: str) -> IpBlockPeer:
    return IpBlockPeer(ipaddress.ip_network(prefix), tuple(ipaddress.ip_network(hole) for hole in excepts))


def pods(**ports: Ports) -> dict[IPAddress, Ports]:
    """Addresses written with underscores: a10_0_0_1."""
    return {ipaddress.ip_address(name[1:].replace("_", ".")): found for name, found in ports.items()}


def both(pods: Mapping[IPAddress, Ports]) -> dict[IPAddress, Ports]:
    """The same pods with an address of the other family each."""
    return {**pods, **{ipaddress.ip_address(f"fd00::{int(each) & 0xFFFF:x}"): ports for each, ports in pods.items()}}


def parts(parties: Mapping[int, Party]) -> list[list[str]]:
    return sorted([str(address) for address in party.addresses] for n, party in parties.items() if is_refined(n))


TWO = pods(a10_0_0_1=NONE, a10_0_0_9=NONE)


@pytest.mark.parametrize(
    ("watched", "addresses", "expected"),
    [
        ([], TWO, []),
        ([block("10.0.0.0/30")], TWO, [["10.0.0.1"], ["10.0.0.9"]]),
        ([block("10.0.0.0/24")], TWO, []),
        ([block("10.0.0.0/24", "10.0.0.8/29")], TWO, [["10.0.0.1"], ["10.0.0.9"]]),
        ([block("10.0.0.0/24", "10.0.0.4/32")], TWO, []),
        ([block("10.0.1.0/24"), block("0.0.0.0/0")], TWO, []),
        ([block("10.0.0.0/30"), block("10.0.0.1/32")], TWO, [["10.0.0.1"], ["10.0.0.9"]]),
        ([block("10.0.0.0/30")], pods(a10_0_0_1=NONE), []),
        ([block("0.0.0.0/0")], both(pods(a10_0_0_1=NONE)), [["10.0.0.1"], ["fd00::1"]]),
        ([block("10.0.0.0/30")], both(TWO), [["10.0.0.1"], ["10.0.0.9", "fd00::1", "fd00::9"]]),
        ([block("::/0")], TWO, []),
    ],
)
def test_blocks(watched: list[IpBlockPeer], addresses: dict[IPAddress, Ports], expected: list[list[str]]) -> None:
    before, after = Refinements(), Refinements()
    for each in watched:
        before.watch(each)
    found = before.divide(300, VIEW, addresses)
    assert parts(found) == expected
    # Told in the other order, the numbers are the same.
    assert parts(after.divide(300, VIEW, addresses)) == []
    again = {number for each in reversed(watched) for number in after.watch(each)}
    assert again == ({300} if expected or again else set())
    assert after.divide(300, VIEW, addresses) == found
    assert dict(after.table.desired) == dict(before.table.desired)
    assert len(before.table.desired) == sum(map(len, expected))
    # Every party is in a block or it is not.
    for party in found.values():
        if is_refined(party.id):
            assert all(block.matches(party) == block.covers(each) for block in watched for each in party.addresses)
    # Nothing is left behind.
    for each in watched:
        after.unwatch(each)
    assert parts(after.divide(300, VIEW, addresses)) == []
    before.forget(300)
    assert not before.table.desired
    assert not after.table.desired


def test_names_divide_only_while_rules_use_them() -> None:
    refinements = Refinements()
    first, second = frozenset({("http", 6, 80)}), frozenset({("http", 6, 81)})
    ports = {("http", 6)}
    addresses = pods(a10_0_0_1=first | {("dns", 17, 53)}, a10_0_0_2=second, a10_0_0_3=second)
    assert parts(refinements.divide(300, VIEW, addresses)) == []
    assert refinements.watch_names(ports) == [300]
    found = refinements.divide(300, VIEW, addresses)
    assert parts(found) == [["10.0.0.1"], ["10.0.0.2", "10.0.0.3"]]
    # Whom nobody has told about yet has the ports that all have: none.
    assert found[300].ports == {}
    part = found[refinements.part_of(300, ipaddress.ip_address("10.0.0.2"))]
    assert part.ports == {("http", 6): frozenset({81})}
    assert refinements.part_of(300, ipaddress.ip_address("10.0.0.77")) == 300
    assert refinements.watch_names(ports) == []
    assert refinements.unwatch_names(ports) == []
    assert refinements.unwatch_names(ports) == [300]
    assert parts(refinements.divide(300, VIEW, addresses)) == []
