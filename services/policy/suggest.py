"""A least-privilege policy from recorded flows: what was seen is allowed, nothing else. Pure.

In: observations about the pods that a selector means. Out: a CiliumNetworkPolicy document, marked as generated, that
reads without mistakes and lets exactly such flows pass.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.model.addresses import IPAddress
from services.model.labels import POD_NAMESPACE, SOURCE_K8S, SOURCE_RESERVED, Labels
from services.model.verdict import Direction, Protocol
from services.policy.l7 import Request

GENERATED_BY = "ciliate.io/generated-by"
GENERATED_FROM = "ciliate.io/generated-from"
VOLATILE = frozenset({"pod-template-hash", "controller-revision-hash", "pod-template-generation"})
"""Labels that a new version of the same workload changes."""
PORT_LIMIT = 40
"""A toPorts element may have this many ports (policy-semantics 2.11)."""
ENTITIES = ("kube-apiserver", "host", "remote-node", "health", "ingress", "init", "unmanaged")
_FAMILIES = {Protocol.ICMP: "IPv4", Protocol.ICMPV6: "IPv6"}


@dataclass(frozen=True, slots=True)
class Observation:
    """A connection, or a request on one, that was let pass at the pods in question. `port`: of ICMP the type."""

    direction: Direction
    peer: Labels
    address: IPAddress
    """The peer's; what an outside peer is known by."""
    protocol: int
    port: int
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The document, and what could not be put into it."""

    document: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


PeerKey = tuple[str, tuple[str, ...]]


def suggest(
    name: str,
    namespace: str,
    selector: Mapping[str, str],
    observations: Mapping[Observation, int],
    period: str,
    directions: Iterable[Direction] = (Direction.INGRESS, Direction.EGRESS),
) -> Suggestion:
    """The policy for what was seen, with how often it was seen; a direction without flows is closed."""
    spec: dict[str, Any] = {"endpointSelector": {"matchLabels": dict(sorted(selector.items()))}}
    left_out: Counter[str] = Counter()
    count = 0
    for direction in directions:
        mine = {one: times for one, times in observations.items() if one.direction == direction}
        count += sum(mine.values())
        rules = _rules(direction, mine, namespace, left_out)
        # An empty element isolates and allows nothing: nobody was seen, so nobody is let in.
        spec[direction.name.lower()] = rules or [{}]
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {
                GENERATED_BY: "ciliate policy suggest",
                GENERATED_FROM: f"{count} flows of {period}",
            },
        },
        "spec": spec,
    }
    return Suggestion(document, tuple(f"{what} ({times} flows)" for what, times in sorted(left_out.items())))


def _rules(
    direction: Direction, seen: Mapping[Observation, int], namespace: str, left_out: Counter[str]
) -> list[dict[str, Any]]:
    by_peer: dict[PeerKey, list[Observation]] = {}
    for one, times in seen.items():
        if one.protocol not in (*_FAMILIES, Protocol.TCP, Protocol.UDP, Protocol.SCTP):
            left_out[f"protocol {one.protocol}: policies cannot name it"] += times
            continue
        if not one.port and one.protocol not in _FAMILIES:
            left_out["port 0: policies read it as every port"] += times
            continue
        key = _peer_key(one, namespace)
        if key == ("entity", ("host",)) and direction == Direction.INGRESS:
            continue  # the node reaches its pods anyway
        by_peer.setdefault(key, []).append(one)
    side = "from" if direction == Direction.INGRESS else "to"
    rules: list[dict[str, Any]] = []
    # Peers that did the same share a rule.
    grouped: dict[str, tuple[list[PeerKey], dict[str, Any]]] = {}
    for key, ones in sorted(by_peer.items()):
        for part in _traffic(ones, direction):
            grouped.setdefault(f"{key[0]} {part!r}", ([], part))[0].append(key)
    for keys, part in grouped.values():
        rules.append({**_peers(side, keys), **part})
    return rules


def _peer_key(one: Observation, namespace: str) -> PeerKey:
    reserved = {label.key for label in one.peer if label.source == SOURCE_RESERVED}
    for entity in ENTITIES:
        if entity in reserved:
            return "entity", (entity,)
    own = sorted(
        f"{label.key}={label.value}"
        for label in one.peer
        if label.source == SOURCE_K8S and not label.key.startswith("io.cilium.") and label.key not in VOLATILE
    )
    space = one.peer.value(POD_NAMESPACE)
    if space is None:
        return "cidr", (f"{one.address}/{one.address.max_prefixlen}",)
    return "pod", tuple(text for text in own if text != f"{POD_NAMESPACE}={namespace}")


def _peers(side: str, keys: list[PeerKey]) -> dict[str, Any]:
    kind = keys[0][0]
    if kind == "entity":
        return {f"{side}Entities": [values[0] for _, values in keys]}
    if kind == "cidr":
        return {f"{side}CIDR": [values[0] for _, values in keys]}
    return {f"{side}Endpoints": [_selector(values) for _, values in keys]}


def _selector(texts: tuple[str, ...]) -> dict[str, Any]:
    pairs = (text.partition("=") for text in texts)
    return {"matchLabels": {key: value for key, _, value in pairs}} if texts else {}


def _traffic(ones: list[Observation], direction: Direction) -> list[dict[str, Any]]:
    """The `toPorts` and `icmps` parts: each needs a rule of its own."""
    parts: list[dict[str, Any]] = []
    ports = sorted({(one.protocol, one.port) for one in ones if one.protocol not in _FAMILIES})
    requests = {
        port: {one.request for one in ones if (one.protocol, one.port) == port and one.request is not None}
        for port in ports
    }
    # Requests are recorded only where HTTP rules look at them, which is on ingress.
    filtered = [port for port in ports if requests[port] and direction == Direction.INGRESS]
    plain = [port for port in ports if port not in filtered]
    elements: list[dict[str, Any]] = [
        {"ports": [_port(port) for port in plain[at : at + PORT_LIMIT]]} for at in range(0, len(plain), PORT_LIMIT)
    ]
    for port in filtered:
        rules = sorted({(one.method, one.path) for one in requests[port]})
        http = [{"method": re.escape(method), "path": re.escape(path)} for method, path in rules]
        elements.append({"ports": [_port(port)], "rules": {"http": http}})
    if elements:
        parts.append({"toPorts": elements})
    types = sorted({(one.protocol, one.port) for one in ones if one.protocol in _FAMILIES})
    if types:
        fields = [{"family": _FAMILIES[Protocol(protocol)], "type": kind} for protocol, kind in types]
        parts += [{"icmps": [{"fields": fields[at : at + PORT_LIMIT]} for at in range(0, len(fields), PORT_LIMIT)]}]
    return parts


def _port(port: tuple[int, int]) -> dict[str, str]:
    return {"port": str(port[1]), "protocol": Protocol(port[0]).name}
