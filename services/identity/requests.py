"""Reading what callers send: the only place where hostile input becomes values. Pure.

Every refusal is `Invalid` with the field, what is wrong with it and what to write instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from services.common.errors import Invalid
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.identity.endpoints import Registration
from services.model.identity import CLUSTER_MAX, RESERVED_LABELS, Reserved, is_cluster, is_reserved
from services.model.labels import (
    SOURCE_ANY,
    SOURCE_CIDR,
    SOURCE_CIDR_GROUP,
    SOURCE_FQDN,
    SOURCE_RESERVED,
    SOURCE_UNSPEC,
    Label,
    LabelError,
    Labels,
)

MAX_LABELS = 256
MAX_CANONICAL_BYTES = 16 << 10
"""Bound of an identity's labels all together: they are an etcd key and travel to every node."""
MAX_NAME = 253
MAX_PORTS = 64
MAX_PORT_NAME = 63

_NODE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_LOCAL_SOURCES = {SOURCE_CIDR, SOURCE_CIDR_GROUP, SOURCE_FQDN}
_NEVER_REGISTERED = {Reserved.HOST, Reserved.WORLD, Reserved.WORLD_IPV4, Reserved.WORLD_IPV6}
_RESERVED_BY_LABELS = {labels: number for number, labels in RESERVED_LABELS.items()}


def read_labels(texts: list[str]) -> Labels:
    """The labels of an identity; they may be a reserved identity's."""
    if not texts:
        raise Invalid("labels: empty; an endpoint without labels is identity 5 (reserved:init)")
    if len(texts) > MAX_LABELS:
        raise Invalid(f"labels: {len(texts)} of them, {MAX_LABELS} are allowed; filter them (see the label filter)")
    try:
        labels = Labels.parse(texts)
    except LabelError as error:
        raise Invalid(f"labels: {error}") from error
    size = len(labels.canonical().encode())
    if size > MAX_CANONICAL_BYTES:
        raise Invalid(f"labels: {size} bytes together, {MAX_CANONICAL_BYTES} are allowed; filter or shorten them")
    for label in labels:
        if label.source in {SOURCE_ANY, SOURCE_UNSPEC}:
            raise Invalid(f"labels: {label.key!r} has no source; write source:key=value, for instance k8s:app=web")
        if label.source in _LOCAL_SOURCES:
            raise Invalid(f"labels: {str(label)!r} belongs to a node-local identity; only its node can number it")
    if reserved_id(labels) is None and any(label.source == SOURCE_RESERVED for label in labels):
        raise Invalid("labels: reserved labels stand for fixed identities and cannot be combined with others")
    return labels


def reserved_id(labels: Labels) -> int | None:
    """The fixed number of these labels, if they have one."""
    return _RESERVED_BY_LABELS.get(labels)


def read_filter(texts: list[str]) -> list[Label]:
    """Labels that must all be there; without a source (or with `any`) any source will do."""
    try:
        return [Label.parse(text, SOURCE_ANY) for text in texts]
    except LabelError as error:
        raise Invalid(f"labels: {error}") from error


def matches(wanted: list[Label], labels: Labels) -> bool:
    """Whether `labels` has all that are wanted."""
    return all(
        label in labels
        if label.source not in {SOURCE_ANY, SOURCE_UNSPEC}
        else any(found.key == label.key and found.value == label.value for found in labels)
        for label in wanted
    )


def read_claim(revision: int) -> int:
    """The claim that a release is of; 0 for whichever it is."""
    if revision < 0:
        raise Invalid(f"claim: {revision} is none; send what Allocate or ListReferences told, or 0")
    return revision


def read_node(node: str) -> str:
    """A node's name."""
    if not node:
        raise Invalid("node: empty; name the node that the request is for")
    if len(node) > MAX_NAME or not _NODE.fullmatch(node):
        raise Invalid(f"node: {node[:80]!r} is not a node name: letters, digits, '-', '_', '.', at most {MAX_NAME}")
    return node


def read_known_id(number: int) -> int:
    """A number that an identity can have."""
    if not is_reserved(number) and not is_cluster(number):
        raise Invalid(f"id: {number} is no cluster identity; those are 1..{CLUSTER_MAX}")
    return number


def read_prefix(text: str, field: str) -> str:
    """The canonical form of one address's prefix: "10.1.2.3/32", "fd00::1/128"."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise Invalid(f"{field}: {text[:80]!r} is not an address prefix such as 10.1.2.3/32: {error}") from error
    if network.prefixlen != network.max_prefixlen or "/" not in text:
        raise Invalid(f"{field}: {text!r} must be one address: write /{network.max_prefixlen}")
    if network.is_multicast or network.is_unspecified or network.is_loopback:
        raise Invalid(f"{field}: {text!r} cannot be a workload's address")
    mapped = network.network_address.ipv4_mapped if network.version == 6 else None
    if mapped is not None:
        raise Invalid(f"{field}: {text!r} is IPv4 in IPv6 clothes; write {mapped}/32")
    return str(network)


def read_endpoint(endpoint: pb.Endpoint) -> Registration:
    """A row to register, in canonical form."""
    prefix = read_prefix(endpoint.prefix, "endpoint.prefix")
    node = read_node(endpoint.node)
    identity = endpoint.identity
    if not is_reserved(identity) and not is_cluster(identity):
        raise Invalid(f"endpoint.identity: {identity} is no cluster identity; those are 1..{CLUSTER_MAX}")
    if identity in _NEVER_REGISTERED or (is_reserved(identity) and identity not in RESERVED_LABELS):
        raise Invalid(
            f"endpoint.identity: {identity} cannot be registered: it means something else on every node; "
            "a node's own address is registered as 6 (remote-node)"
        )
    tunnel = endpoint.tunnel_endpoint
    if tunnel:
        try:
            tunnel = str(ipaddress.ip_address(tunnel))
        except ValueError as error:
            raise Invalid(f"endpoint.tunnel_endpoint: {tunnel[:80]!r} is not an address: {error}") from error
    for field in ("namespace", "pod"):
        _check_name(getattr(endpoint, field), f"endpoint.{field}")
    for field in ("workload_kind", "workload"):
        _check_name(getattr(endpoint, field), f"endpoint.{field}")
    row = pb.Endpoint(
        prefix=prefix,
        identity=identity,
        node=node,
        tunnel_endpoint=tunnel,
        key=endpoint.key,
        namespace=endpoint.namespace,
        pod=endpoint.pod,
        ports=_read_ports(endpoint.ports),
        workload_kind=endpoint.workload_kind,
        workload=endpoint.workload,
    )
    return Registration(prefix, identity, node, row.SerializeToString(deterministic=True))


def _check_name(text: str, field: str) -> None:
    if len(text) > MAX_NAME or (text and not text.isprintable()):
        raise Invalid(f"{field}: {text[:80]!r} is not a name of at most {MAX_NAME} characters")


def _read_ports(ports: Sequence[pb.NamedPort]) -> list[pb.NamedPort]:
    if len(ports) > MAX_PORTS:
        raise Invalid(f"endpoint.ports: {len(ports)} of them, {MAX_PORTS} are allowed")
    for index, port in enumerate(ports):
        where = f"endpoint.ports[{index}]"
        if not port.name or len(port.name) > MAX_PORT_NAME or not port.name.isprintable():
            raise Invalid(f"{where}.name: {port.name[:80]!r} is not a name of 1 to {MAX_PORT_NAME} characters")
        if not 0 < port.port < 1 << 16:
            raise Invalid(f"{where}.port: {port.port} is no port; those are 1..65535")
        if not 0 <= port.protocol < 256:
            raise Invalid(f"{where}.protocol: {port.protocol} is no IP protocol; those are 0..255")
    return list(ports)
