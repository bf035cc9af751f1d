"""Reads one element of a Cilium policy's ingress, egress or deny list: who (L3), what (ports, ICMP), authentication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.model.verdict import Direction
from services.policy import cilium_peers
from services.policy.cilium_peers import Scope
from services.policy.cilium_ports import read_ports
from services.policy.icmp import read_icmps
from services.policy.peers import ANYONE, Peer
from services.policy.reader import Doc, Reader, join, present
from services.policy.rules import EVERYTHING, Rule, Traffic

__all__ = ["Scope", "read_element"]

PeerReader = Callable[[Reader, Any, str, Scope], tuple[Peer, ...]]

INGRESS_PEERS: dict[str, PeerReader] = {
    "fromEndpoints": cilium_peers.read_endpoints,
    "fromCIDR": cilium_peers.read_cidr,
    "fromCIDRSet": cilium_peers.read_cidr_set,
    "fromEntities": cilium_peers.read_entity,
    "fromNodes": cilium_peers.read_nodes,
    "fromGroups": cilium_peers.read_group,
}
EGRESS_PEERS: dict[str, PeerReader] = {
    "toEndpoints": cilium_peers.read_endpoints,
    "toCIDR": cilium_peers.read_cidr,
    "toCIDRSet": cilium_peers.read_cidr_set,
    "toEntities": cilium_peers.read_entity,
    "toNodes": cilium_peers.read_nodes,
    "toGroups": cilium_peers.read_group,
    "toServices": cilium_peers.read_service,
    "toFQDNs": cilium_peers.read_fqdn,
}
EMPTY_IS_ABSENT = frozenset({"toFQDNs", "toServices"})
MODES = frozenset({"disabled", "required", "test-always-fail"})
RETIRED = {
    "auth": "is an old name without effect; use authentication",
}


def read_element(
    reader: Reader, document: object, path: str, direction: Direction, deny: bool, index: int, scope: Scope
) -> list[Rule]:
    """The normalised rule of one element, as a list of at most one: a wrong element gives none."""
    readers = dict(INGRESS_PEERS if direction == Direction.INGRESS else EGRESS_PEERS)
    if deny:
        readers.pop("toFQDNs", None)
    requires = "fromRequires" if direction == Direction.INGRESS else "toRequires"
    known = {*readers, "toPorts", "icmps", requires}
    if not deny:
        known |= {"authentication", *RETIRED}
    body = reader.mapping(document, path, frozenset(known))
    if body is not document and document is not None:
        return []
    for key in sorted(RETIRED.keys() & body.keys()):
        reader.warn(join(path, key), RETIRED[key])
    if reader.sequence(body.get(requires), join(path, requires)):
        reader.report(join(path, requires), "was removed; write the requirement into every selector instead")
    traffic, limited = _read_traffic(reader, body, path, direction, deny, scope)
    peers = _read_peers(reader, body, path, readers, scope, limited)
    mode = _read_authentication(reader, body, path)
    return [Rule(direction, path, index, peers, traffic, deny, mode)]


def _read_peers(
    reader: Reader, body: Doc, path: str, readers: dict[str, PeerReader], scope: Scope, limited: bool
) -> tuple[Peer, ...]:
    """Nil and empty differ (policy-semantics 2.4): no member at all means everyone, an empty member nobody."""
    given: list[str] = []
    empty = False
    peers: list[Peer] = []
    for key, read in readers.items():
        if not present(body, key):
            continue
        elements = list(reader.items(body, key, path))
        if elements:
            given.append(key)
        elif key not in EMPTY_IS_ABSENT:
            empty = True
        for at, element in elements:
            peers += read(reader, element, at, scope)
    if len(given) > 1:
        reader.report(path, f"{given[0]} cannot be combined with {given[1]} in one element; use two elements")
    if empty:
        return ()
    if given:
        return tuple(dict.fromkeys(peers))
    return (ANYONE,) if limited else ()


def _read_traffic(
    reader: Reader, body: Doc, path: str, direction: Direction, deny: bool, scope: Scope
) -> tuple[tuple[Traffic, ...], bool]:
    """(what may pass, whether ports or ICMP types limit it)."""
    ports = list(reader.items(body, "toPorts", path))
    icmps = list(reader.items(body, "icmps", path))
    if ports and icmps:
        reader.report(path, "icmps cannot be combined with toPorts in one element; use two elements")
    if icmps and not scope.options.icmp_rules:
        reader.report(join(path, "icmps"), "ICMP rules are switched off on this cluster")
    if not ports and not icmps:
        return EVERYTHING, False
    found: list[Traffic] = []
    for at, element in ports:
        found += read_ports(reader, element, at, direction, deny, scope)
    for at, element in icmps:
        found += read_icmps(reader, element, at)
    return tuple(dict.fromkeys(found)), True


def _read_authentication(reader: Reader, body: Doc, path: str) -> str:
    at = join(path, "authentication")
    given = reader.mapping(body.get("authentication"), at, frozenset({"mode"}))
    if not present(body, "authentication"):
        return ""
    mode = reader.text(given.get("mode"), join(at, "mode"))
    if mode not in MODES:
        reader.report(join(at, "mode"), f"{mode[:40]!r} is not one of {', '.join(sorted(MODES))}")
        return "required"
    return mode
