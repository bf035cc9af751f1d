"""CiliumEgressGatewayPolicy: which pods leave the cluster by which nodes, for which destinations.

Input: the document. Output: an `EgressGatewayPolicy`, or every mistake at once with its field and the fix. Pure.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from services.model.addresses import IPAddress, IPNetwork
from services.model.labels import NAMESPACE_LABELS, POD_NAMESPACE, SOURCE_K8S
from services.model.objects import PolicyObject
from services.policy.networkpolicy import read_prefix
from services.policy.reader import Reader, join, present
from services.policy.selectors import Selector, exists, read_selector

KIND = "CiliumEgressGatewayPolicy"
VERSION = "cilium.io/v2"
TOP_FIELDS = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})
SPEC_FIELDS = frozenset({"selectors", "destinationCIDRs", "excludedCIDRs", "egressGateway", "egressGateways"})
SUBJECT_FIELDS = frozenset({"podSelector", "namespaceSelector", "nodeSelector"})
GATEWAY_FIELDS = frozenset({"nodeSelector", "interface", "egressIP"})
MAX_INTERFACE = 15


@dataclass(frozen=True, slots=True)
class Subject:
    """Pods that a policy is about: by their labels and their namespace's, and the labels of their node."""

    pods: Selector
    nodes: Selector


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where packets leave: by the first of these nodes, with this address, or that of this interface, or the node's."""

    nodes: Selector
    address: IPAddress | None = None
    interface: str = ""


@dataclass(frozen=True, slots=True)
class EgressGatewayPolicy:
    """One policy. Pods are distributed over its gateways, where it has several."""

    name: str
    subjects: tuple[Subject, ...]
    destinations: tuple[IPNetwork, ...]
    excluded: tuple[IPNetwork, ...]
    gateways: tuple[Gateway, ...]


def read_egress_gateway_policy(source: PolicyObject) -> EgressGatewayPolicy:
    """Read and validate; raises `PolicyInvalid` with all problems."""
    reader = Reader()
    document = reader.mapping(source.document, "", TOP_FIELDS)
    version = document.get("apiVersion")
    if version is not None and version != VERSION:
        reader.report("apiVersion", f"{str(version)[:60]!r} is not {VERSION}, the version of {KIND} read here")
    spec = reader.mapping(document.get("spec"), "spec", SPEC_FIELDS)
    if not spec:
        reader.report("spec", "is missing; say who (selectors), to where (destinationCIDRs) and how (egressGateway)")
    policy = EgressGatewayPolicy(
        source.key.name,
        tuple(_read_subject(reader, item, at) for at, item in reader.items(spec, "selectors", "spec")),
        _read_prefixes(reader, spec, "destinationCIDRs"),
        _read_prefixes(reader, spec, "excludedCIDRs"),
        _read_gateways(reader, spec),
    )
    if spec and not policy.subjects:
        reader.report("spec.selectors", "is empty: no pod would be selected; give at least one selector")
    if spec and not policy.destinations and not reader.problems:
        reader.report("spec.destinationCIDRs", "is empty; give at least one prefix, such as 0.0.0.0/0")
    for gateway in policy.gateways:
        if gateway.address and all(prefix.version != gateway.address.version for prefix in policy.destinations):
            reader.report(
                "spec.egressGateway.egressIP",
                f"{gateway.address} is IPv{gateway.address.version}, but no destination is; give one of its family",
            )
    reader.finish()
    return policy


def _read_subject(reader: Reader, document: object, path: str) -> Subject:
    body = reader.mapping(document, path, SUBJECT_FIELDS)
    if not any(present(body, key) for key in ("podSelector", "namespaceSelector")):
        reader.report(path, "must have a podSelector or a namespaceSelector; an empty one ({}) selects all")
    pods = read_selector(reader, body.get("podSelector"), join(path, "podSelector"), sourced=True)
    spaces = read_selector(
        reader,
        body.get("namespaceSelector"),
        join(path, "namespaceSelector"),
        sourced=False,
        key_prefix=f"{NAMESPACE_LABELS}.",
    )
    nodes = read_selector(reader, body.get("nodeSelector"), join(path, "nodeSelector"), sourced=False)
    # Only pods: everything that has a namespace.
    return Subject(pods.also(*spaces.requirements, exists(SOURCE_K8S, POD_NAMESPACE)), nodes)


def _read_prefixes(reader: Reader, spec: object, key: str) -> tuple[IPNetwork, ...]:
    body = reader.mapping(spec, "spec")
    found = [read_prefix(reader, value, at) for at, value in reader.items(body, key, "spec")]
    return tuple(sorted({prefix for prefix in found if prefix is not None}, key=str))


def _read_gateways(reader: Reader, spec: object) -> tuple[Gateway, ...]:
    body = reader.mapping(spec, "spec")
    one, several = present(body, "egressGateway"), present(body, "egressGateways")
    if body and one == several:
        reader.report("spec.egressGateway", "is missing" if not one else "and egressGateways are both given; use one")
    found = [_read_gateway(reader, body["egressGateway"], "spec.egressGateway")] if one else []
    if several and not reader.sequence(body.get("egressGateways"), "spec.egressGateways"):
        reader.report("spec.egressGateways", "is empty; give at least one gateway")
    found += [_read_gateway(reader, item, at) for at, item in reader.items(body, "egressGateways", "spec")]
    return tuple(found)


def _read_gateway(reader: Reader, document: object, path: str) -> Gateway:
    body = reader.mapping(document, path, GATEWAY_FIELDS)
    if not present(body, "nodeSelector"):
        reader.report(join(path, "nodeSelector"), "is missing; select the gateway nodes by their labels")
    nodes = read_selector(reader, body.get("nodeSelector"), join(path, "nodeSelector"), sourced=False)
    interface = reader.text(body.get("interface"), join(path, "interface"))
    if interface and present(body, "egressIP"):
        reader.report(path, "has an interface and an egressIP; give one of them, or neither for the node's address")
    if len(interface) > MAX_INTERFACE or "/" in interface or any(c.isspace() for c in interface):
        reader.report(join(path, "interface"), f"{interface[:40]!r} is no name of an interface (at most 15 characters)")
    return Gateway(nodes, _read_address(reader, body.get("egressIP"), join(path, "egressIP")), interface)


def _read_address(reader: Reader, value: object, path: str) -> IPAddress | None:
    text = reader.text(value, path)
    if not text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        reader.report(path, f"{text[:60]!r} is not an IP address")
        return None
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        reader.report(path, f"{address} cannot be a packet's source; give an address of the gateway node")
    return address
