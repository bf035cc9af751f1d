"""Reads Kubernetes NetworkPolicies (networking.k8s.io/v1; policy-semantics 1) into normalised policies."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from services.model.addresses import IPNetwork
from services.model.labels import CLUSTER, NAMESPACE_LABELS, POD_NAMESPACE, SOURCE_K8S
from services.model.objects import PolicyObject
from services.model.verdict import Direction, Protocol
from services.policy.peers import ANYONE, IpBlockPeer, LabelPeer, Peer
from services.policy.reader import Doc, Reader, describe, join, present
from services.policy.rules import EVERYTHING, LAST_PORT, Policy, Rule, Spec, Traffic
from services.policy.selectors import Requirement, Selector, equals, exists, read_selector

SPEC_FIELDS = frozenset({"podSelector", "policyTypes", "ingress", "egress"})
RULE_FIELDS = {Direction.INGRESS: frozenset({"from", "ports"}), Direction.EGRESS: frozenset({"to", "ports"})}
PEER_FIELDS = frozenset({"podSelector", "namespaceSelector", "ipBlock"})
BLOCK_FIELDS = frozenset({"cidr", "except"})
PORT_FIELDS = frozenset({"port", "endPort", "protocol"})
PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
SERVICE_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9]|-(?!-))*(?<!-)\Z")


def read_network_policy(source: PolicyObject, reader: Reader, cluster: str) -> Policy:
    """Normalise one document; mistakes go to the reader."""
    spec = reader.mapping(source.document.get("spec"), "spec", SPEC_FIELDS)
    if not present(source.document, "spec"):
        reader.report("spec", "is missing; a NetworkPolicy without it says nothing")
    namespace = source.key.namespace
    local = [equals(SOURCE_K8S, CLUSTER, cluster)] if cluster else []
    subject = read_selector(reader, spec.get("podSelector"), "spec.podSelector", sourced=False)
    types = _policy_types(reader, spec)
    rules: list[Rule] = []
    for direction, key in ((Direction.INGRESS, "ingress"), (Direction.EGRESS, "egress")):
        for index, (path, document) in enumerate(reader.items(spec, key, "spec")):
            peers, traffic = _read_rule(reader, document, path, direction, namespace, local)
            # Rules of a direction that the policy does not name are not enforced, only checked.
            if direction in types:
                rules.append(Rule(direction, path, index, peers, traffic))
    labels = (
        "k8s:io.cilium.k8s.policy.derived-from=NetworkPolicy",
        f"k8s:io.cilium.k8s.policy.name={source.key.name}",
        f"k8s:io.cilium.k8s.policy.namespace={namespace}",
        f"k8s:io.cilium.k8s.policy.uid={source.uid}",
    )
    spec_value = Spec(subject.also(equals(SOURCE_K8S, POD_NAMESPACE, namespace)), tuple(rules), frozenset(types))
    return Policy(source.key, (spec_value,), source.uid, labels, tuple(reader.warnings))


def _policy_types(reader: Reader, spec: Doc) -> set[Direction]:
    found: set[Direction] = set()
    for path, text in reader.items(spec, "policyTypes", "spec", limit=2):
        match text:
            case "Ingress":
                found.add(Direction.INGRESS)
            case "Egress":
                found.add(Direction.EGRESS)
            case _:
                reader.report(path, f"must be Ingress or Egress, not {describe(text)}")
    if not found:
        found.add(Direction.INGRESS)
        if reader.sequence(spec.get("egress"), "spec.egress"):
            found.add(Direction.EGRESS)
    return found


def _read_rule(
    reader: Reader, document: object, path: str, direction: Direction, namespace: str, local: list[Requirement]
) -> tuple[tuple[Peer, ...], tuple[Traffic, ...]]:
    body = reader.mapping(document, path, RULE_FIELDS[direction])
    peers: list[Peer] = []
    for at, peer in reader.items(body, "from" if direction == Direction.INGRESS else "to", path):
        read = _read_peer(reader, peer, at, namespace, local)
        if read is not None:
            peers.append(read)
    if not reader.sequence(body.get("from" if direction == Direction.INGRESS else "to"), path):
        peers = [ANYONE]
    ports = [traffic for at, port in reader.items(body, "ports", path) for traffic in _read_port(reader, port, at)]
    if not reader.sequence(body.get("ports"), path):
        ports = list(EVERYTHING)
    return tuple(peers), tuple(ports)


def _read_peer(reader: Reader, document: object, path: str, namespace: str, local: list[Requirement]) -> Peer | None:
    body = reader.mapping(document, path, PEER_FIELDS)
    given = [key for key in ("podSelector", "namespaceSelector", "ipBlock") if present(body, key)]
    if not given:
        reader.report(path, "must specify a peer: podSelector, namespaceSelector or ipBlock")
        return None
    if "ipBlock" in given:
        if len(given) > 1:
            reader.report(path, "ipBlock cannot be combined with selectors in one peer; use two list elements")
        return _read_block(reader, body["ipBlock"], join(path, "ipBlock"))
    pods = read_selector(reader, body.get("podSelector"), join(path, "podSelector"), sourced=False)
    if "namespaceSelector" not in given:
        return LabelPeer(pods.also(equals(SOURCE_K8S, POD_NAMESPACE, namespace), *local))
    spaces = read_selector(
        reader,
        body["namespaceSelector"],
        join(path, "namespaceSelector"),
        sourced=False,
        key_prefix=f"{NAMESPACE_LABELS}.",
    )
    # A pod selector, empty or not, only ever selects pods: everything that has a namespace.
    within = Selector.of((*spaces.requirements, exists(SOURCE_K8S, POD_NAMESPACE)))
    return LabelPeer(within.also(*pods.requirements, *local))


def _read_block(reader: Reader, document: object, path: str) -> Peer | None:
    body = reader.mapping(document, path, BLOCK_FIELDS)
    prefix = read_prefix(reader, body.get("cidr"), join(path, "cidr"))
    excepts: list[IPNetwork] = []
    for at, text in reader.items(body, "except", path):
        hole = read_prefix(reader, text, at)
        if hole is None or prefix is None:
            continue
        if hole.version != prefix.version or hole == prefix or not hole.subnet_of(prefix):  # type: ignore[arg-type]
            reader.report(at, f"{hole} must be a strict subset of cidr {prefix}")
        excepts.append(hole)
    return IpBlockPeer(prefix, tuple(sorted(excepts, key=str))) if prefix is not None else None


def read_prefix(reader: Reader, value: Any, path: str, *, bare: bool = False) -> IPNetwork | None:
    """A prefix in CIDR notation; with `bare` also an address. Host bits are cut off."""
    if not isinstance(value, str) or not value:
        reader.report(path, f"must be a prefix such as 10.0.0.0/8, not {'empty' if not value else describe(value)}")
        return None
    if "/" not in value and not bare:
        reader.report(path, f"{value[:60]!r} must carry a prefix length, such as {value[:45]}/32")
        return None
    try:
        return ipaddress.ip_network(value, strict=False)
    except ValueError:
        reader.report(path, f"{value[:60]!r} is not an IPv4 or IPv6 prefix")
        return None


def _read_port(reader: Reader, document: object, path: str) -> tuple[Traffic, ...]:
    body = reader.mapping(document, path, PORT_FIELDS)
    text = reader.text(body.get("protocol"), join(path, "protocol"), "TCP")
    protocol = PROTOCOLS.get(text)
    if protocol is None:
        reader.report(join(path, "protocol"), f"{text[:20]!r} is not one of TCP, UDP, SCTP")
        return ()
    port, end = body.get("port"), reader.integer(body.get("endPort"), join(path, "endPort"), 1, LAST_PORT)
    if port is None:
        if end is not None:
            reader.report(join(path, "endPort"), "needs a port that it ends the range of")
        return (Traffic(protocol),)
    if isinstance(port, str):
        if end is not None:
            reader.report(join(path, "endPort"), "cannot be used with a named port")
        if len(port) > 15 or not SERVICE_NAME.match(port):
            reader.report(
                join(path, "port"),
                f"{port[:40]!r} is not a port name (at most 15 of a-z, 0-9 and '-'); numbers have no quotes",
            )
            return ()
        return (Traffic(protocol, name=port),)
    number = reader.integer(port, join(path, "port"), 1, LAST_PORT)
    if number is None:
        return ()
    if end is not None and end < number:
        reader.report(join(path, "endPort"), f"{end} must not be less than port {number}")
        return ()
    return (Traffic(protocol, number, end or number),)
