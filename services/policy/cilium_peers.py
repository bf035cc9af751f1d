"""Reads the L3 members of Cilium policy elements: endpoints, CIDRs, entities, nodes, groups, services, DNS names.

Namespace and cluster defaulting of peer selectors is here (policy-semantics 4.3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from services.model.addresses import IPNetwork
from services.model.labels import (
    CLUSTER,
    NAMESPACE_LABELS,
    POD_NAMESPACE,
    SOURCE_ANY,
    SOURCE_CIDR_GROUP,
    SOURCE_K8S,
    SOURCE_RESERVED,
)
from services.policy.networkpolicy import read_prefix
from services.policy.options import PolicyOptions
from services.policy.peers import (
    ENTITIES,
    CidrGroupPeer,
    CidrPeer,
    FqdnPeer,
    LabelPeer,
    Peer,
    ServicePeer,
    entity_peers,
)
from services.policy.reader import Reader, describe, join, nearest, present
from services.policy.selectors import Selector, equals, exists, read_selector

CIDR_SET_FIELDS = frozenset({"cidr", "cidrGroupRef", "cidrGroupSelector", "except"})
SERVICE_FIELDS = frozenset({"k8sService", "k8sServiceSelector"})
BY_NAME_FIELDS = frozenset({"serviceName", "namespace"})
BY_SELECTOR_FIELDS = frozenset({"selector", "namespace"})
FQDN_FIELDS = frozenset({"matchName", "matchPattern"})
AWS_FIELDS = frozenset({"labels", "securityGroupsIds", "securityGroupsNames", "region"})
DNS_NAME = re.compile(r"[-a-zA-Z0-9_.]+\Z")
DNS_PATTERN = re.compile(r"[-a-zA-Z0-9_.*]+\Z")
MAX_DNS = 255


@dataclass(frozen=True, slots=True)
class Scope:
    """What the surroundings of an element add to its meaning."""

    namespace: str
    clusterwide: bool
    init_subject: bool
    host: bool
    options: PolicyOptions


def read_endpoints(reader: Reader, document: Any, path: str, scope: Scope) -> tuple[Peer, ...]:
    """A selector of pods, put into the policy's namespace and cluster unless it says otherwise."""
    selector = read_selector(reader, document, path, sourced=True)
    if selector.has_source(SOURCE_RESERVED):
        return (LabelPeer(selector),)
    spaces = any(r.key.startswith(f"{NAMESPACE_LABELS}.") for r in selector.requirements)
    if not selector.has_key(POD_NAMESPACE, SOURCE_K8S, SOURCE_ANY):
        if scope.clusterwide:
            if not scope.init_subject:
                selector = selector.also(exists(SOURCE_K8S, POD_NAMESPACE))
        elif not spaces:
            selector = selector.also(equals(SOURCE_K8S, POD_NAMESPACE, scope.namespace))
    return (LabelPeer(_in_cluster(selector, scope)),)


def read_nodes(reader: Reader, document: Any, path: str, scope: Scope) -> tuple[Peer, ...]:
    """A selector of remote nodes."""
    if not scope.options.node_selectors:
        reader.report(path, "fromNodes and toNodes need node identities, which are switched off; use fromEntities")
    selector = read_selector(reader, document, path, sourced=True)
    return (LabelPeer(_in_cluster(selector.also(exists(SOURCE_RESERVED, "remote-node")), scope)),)


def _in_cluster(selector: Selector, scope: Scope) -> Selector:
    if not scope.options.cluster or selector.has_key(CLUSTER, SOURCE_K8S, SOURCE_ANY):
        return selector
    return selector.also(equals(SOURCE_K8S, CLUSTER, scope.options.cluster))


def read_cidr(reader: Reader, document: Any, path: str, scope: Scope) -> tuple[Peer, ...]:
    """A prefix or a bare address."""
    prefix = read_prefix(reader, document, path, bare=True)
    return (CidrPeer(prefix),) if prefix is not None else ()


def read_cidr_set(reader: Reader, document: Any, path: str, scope: Scope) -> tuple[Peer, ...]:
    """A prefix, or the prefixes of groups, less the exceptions."""
    body = reader.mapping(document, path, CIDR_SET_FIELDS)
    given = [key for key in ("cidr", "cidrGroupRef", "cidrGroupSelector") if present(body, key)]
    if not given:
        reader.report(path, "one of cidr, cidrGroupRef, cidrGroupSelector is required")
        return ()
    if len(given) > 1:
        reader.report(path, f"more than one of {', '.join(given)} may not be set")
    prefix = read_prefix(reader, body["cidr"], join(path, "cidr")) if "cidr" in given else None
    excepts: list[IPNetwork] = []
    for at, text in reader.items(body, "except", path):
        hole = read_prefix(reader, text, at)
        if hole is None:
            continue
        if prefix is not None and (hole.version != prefix.version or hole.network_address not in prefix):
            reader.report(at, f"{hole} does not lie in cidr {prefix}")
        excepts.append(hole)
    holes = tuple(sorted(set(excepts), key=str))
    if prefix is not None:
        return (CidrPeer(prefix, holes),)
    if "cidrGroupRef" in given:
        name = reader.text(body["cidrGroupRef"], join(path, "cidrGroupRef"))
        if not name:
            reader.report(join(path, "cidrGroupRef"), "must name a CiliumCIDRGroup")
        return (CidrGroupPeer(name, None, holes),)
    if "cidrGroupSelector" in given:
        at = join(path, "cidrGroupSelector")
        selector = read_selector(reader, body["cidrGroupSelector"], at, sourced=False, source=SOURCE_CIDR_GROUP)
        return (CidrGroupPeer("", selector, holes),)
    return ()


def read_entity(reader: Reader, document: Any, path: str, scope: Scope) -> tuple[Peer, ...]:
    """A named group of identities."""
    name = reader.text(document, path)
    peers = entity_peers(name, scope.options.cluster or "default")
    if peers is None:
        reader.report(path, f"unsupported entity {name[:40]!r}{nearest(name, ENTITIES)}")
        return ()
    return tuple(peers)


def read_group(reader: Reader, document: Any, path: str, scope: Scope) -> tuple[Peer, ...]:
    """A cloud provider's group; nothing resolves it here, so it is nobody."""
    body = reader.mapping(document, path, frozenset({"aws"}))
    aws = reader.mapping(body.get("aws"), join(path, "aws"), AWS_FIELDS)
    for key in ("securityGroupsIds", "securityGroupsNames"):
        for at, text in reader.items(aws, key, join(path, "aws")):
            reader.text(text, at)
    reader.warn(path, "cloud groups are not resolved here; the element matches nobody")
    return ()


def read_service(reader: Reader, document: Any, path: str, scope: Scope) -> tuple[Peer, ...]:
    """Services by name or by labels; the selector wins where both are given."""
    body = reader.mapping(document, path, SERVICE_FIELDS)
    if present(body, "k8sServiceSelector"):
        at = join(path, "k8sServiceSelector")
        chosen = reader.mapping(body["k8sServiceSelector"], at, BY_SELECTOR_FIELDS)
        if not present(chosen, "selector"):
            reader.report(join(at, "selector"), "is missing; {} selects every Service")
        selector = read_selector(reader, chosen.get("selector"), join(at, "selector"), sourced=True)
        return (ServicePeer(reader.text(chosen.get("namespace"), join(at, "namespace")), "", selector),)
    at = join(path, "k8sService")
    named = reader.mapping(body.get("k8sService"), at, BY_NAME_FIELDS)
    name = reader.text(named.get("serviceName"), join(at, "serviceName"))
    if not name:
        reader.report(path, "must name a Service (k8sService.serviceName) or select some (k8sServiceSelector)")
        return ()
    return (ServicePeer(reader.text(named.get("namespace"), join(at, "namespace")), name),)


def read_fqdn(reader: Reader, document: Any, path: str, scope: Scope) -> tuple[Peer, ...]:
    """A DNS name or pattern."""
    name = read_dns_name(reader, document, path)
    return (FqdnPeer(name[0]),) if name is not None else ()


def read_dns_name(reader: Reader, document: Any, path: str) -> tuple[str, bool] | None:
    """(name in lower case without final dot, whether it is a pattern) of a matchName / matchPattern element."""
    body = reader.mapping(document, path, FQDN_FIELDS)
    given = [key for key in ("matchName", "matchPattern") if body.get(key)]
    if len(given) != 1:
        reader.report(path, "must have exactly one of matchName and matchPattern")
        return None
    key = given[0]
    text = body[key]
    allowed = DNS_NAME if key == "matchName" else DNS_PATTERN
    if not isinstance(text, str) or len(text) > MAX_DNS or not allowed.match(text):
        shown = describe(text)
        extra = "" if key == "matchName" else " and '*'"
        reader.report(join(path, key), f"{shown} must have at most {MAX_DNS} of a-z, 0-9, '-', '_', '.'{extra}")
        return None
    return text.lower().rstrip(".") or text, key == "matchPattern"
