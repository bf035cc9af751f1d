"""Peers: who a rule is about. Most are label selectors; the others match addresses, names or things looked up later.

`matches` answers for one party of a connection, and is the definition: the indexes of the agent only make it fast.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from services.model.addresses import IPAddress, IPNetwork
from services.model.labels import (
    CLUSTER,
    SOURCE_CIDR,
    SOURCE_FQDN,
    SOURCE_K8S,
    SOURCE_RESERVED,
)
from services.policy.selectors import LabelView, Selector, equals, exists

PortNames = Mapping[tuple[str, int], frozenset[int]]


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a connection as policy sees it.

    `addresses` are the known addresses of the identity's pods (empty for the outside); `ports` maps (container port
    name, protocol) to numbers.
    """

    id: int
    view: LabelView
    addresses: tuple[IPAddress, ...] = ()
    ports: PortNames = field(default_factory=dict)
    node: LabelView | None = None
    """Of a node: what host policies select it by (`nodes.node_view`)."""


@dataclass(frozen=True, slots=True)
class AnyPeer:
    """Everybody: pods, nodes, the outside world."""

    def matches(self, party: Party) -> bool:
        return True

    def __str__(self) -> str:
        return "anyone"


@dataclass(frozen=True, slots=True)
class LabelPeer:
    """Identities by label."""

    selector: Selector

    def matches(self, party: Party) -> bool:
        return self.selector.matches(party.view)

    def __str__(self) -> str:
        return str(self.selector)


@dataclass(frozen=True, slots=True)
class CidrPeer:
    """Outside addresses by prefix: never pods or nodes, which have identities of their own (policy-semantics 5.3)."""

    prefix: IPNetwork
    excepts: tuple[IPNetwork, ...] = ()

    def matches(self, party: Party) -> bool:
        own = cidr_of(party.view)
        if own is None:
            # The prefix of length 0 is what the world label of its family stands for; exceptions have own identities.
            return self.prefix.prefixlen == 0 and _is_world(party.view, self.prefix.version)
        if not _inside(own, self.prefix):
            return False
        return not any(_inside(own, hole) for hole in self.excepts)

    def prefixes(self) -> tuple[IPNetwork, ...]:
        """Prefixes that need an identity of their own for the peer to be told apart; the world has one already."""
        return tuple(prefix for prefix in (self.prefix, *self.excepts) if prefix.prefixlen)

    def __str__(self) -> str:
        holes = f" except {', '.join(str(hole) for hole in self.excepts)}" if self.excepts else ""
        return f"{self.prefix}{holes}"


@dataclass(frozen=True, slots=True)
class IpBlockPeer:
    """A NetworkPolicy's ipBlock: outside addresses by prefix, and pods and nodes whose addresses lie in it.

    A party stands for all its addresses and is matched when every one is inside. The agent divides identities that a
    block cuts through, so that each part is all inside or not (`agent/calc/refined.py`).
    """

    prefix: IPNetwork
    excepts: tuple[IPNetwork, ...] = ()

    def matches(self, party: Party) -> bool:
        if CidrPeer(self.prefix, self.excepts).matches(party):
            return True
        return bool(party.addresses) and all(self.covers(address) for address in party.addresses)

    def covers(self, address: IPAddress) -> bool:
        """Whether one address is in the block."""
        return address in self.prefix and not any(address in hole for hole in self.excepts)

    def prefixes(self) -> tuple[IPNetwork, ...]:
        """As of `CidrPeer`; a block of length 0 with exceptions needs them all the same."""
        return CidrPeer(self.prefix, self.excepts).prefixes()

    def __str__(self) -> str:
        return str(CidrPeer(self.prefix, self.excepts))


@dataclass(frozen=True, slots=True)
class FqdnPeer:
    """Addresses learnt under a DNS name; `name` is the selector's text, which is also the label such addresses get."""

    name: str

    def matches(self, party: Party) -> bool:
        return any(source == SOURCE_FQDN for source, _ in party.view.by_key.get(self.name, ()))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class PortHolder:
    """Every destination that declares one of the named ports: what "anyone" means for a named egress port."""

    names: tuple[tuple[str, int], ...]

    def matches(self, party: Party) -> bool:
        return any(name in party.ports for name in self.names)

    def __str__(self) -> str:
        return f"anyone with port {', '.join(name for name, _ in self.names)}"


@dataclass(frozen=True, slots=True)
class ServicePeer:
    """The backends of Services, by name or by labels; looked up when the rule is bound (`references.resolve`)."""

    namespace: str
    name: str = ""
    selector: Selector | None = None

    def matches(self, party: Party) -> bool:
        return False

    def __str__(self) -> str:
        return f"service {self.namespace or '*'}/{self.name or self.selector}"


@dataclass(frozen=True, slots=True)
class CidrGroupPeer:
    """The prefixes of CiliumCIDRGroups, by name or by labels; looked up when the rule is bound."""

    name: str = ""
    selector: Selector | None = None
    excepts: tuple[IPNetwork, ...] = ()

    def matches(self, party: Party) -> bool:
        return False

    def __str__(self) -> str:
        return f"CIDR group {self.name or self.selector}"


Peer = AnyPeer | LabelPeer | CidrPeer | IpBlockPeer | FqdnPeer | PortHolder | ServicePeer | CidrGroupPeer
ANYONE = AnyPeer()

WORLD_KEYS = {4: ("world", "world-ipv4"), 6: ("world", "world-ipv6")}


def _is_world(view: LabelView, version: int) -> bool:
    return any(view.value(SOURCE_RESERVED, key) is not None for key in WORLD_KEYS[version])


def _inside(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def cidr_of(view: LabelView) -> IPNetwork | None:
    """The prefix of a CIDR identity, None for others."""
    if not view.has_source(SOURCE_CIDR):
        return None
    texts = [label.key for label in view.labels if label.source == SOURCE_CIDR]
    return max((_parse_cidr_key(text) for text in texts), key=lambda network: network.prefixlen)


@lru_cache(maxsize=4096)
def _parse_cidr_key(text: str) -> IPNetwork:
    return ipaddress.ip_network(text.replace("-", ":") if "." not in text else text)


def cidr_key(prefix: IPNetwork) -> str:
    """The key of a prefix's cidr label: colons written as dashes, zeros at the ends (policy-semantics 4.6)."""
    text = str(prefix.network_address).replace(":", "-")
    if text.startswith("-"):
        text = f"0{text}"
    if text.endswith("-"):
        text = f"{text}0"
    return f"{text}/{prefix.prefixlen}"


def reserved(name: str) -> LabelPeer:
    """Identities with a reserved label."""
    return LabelPeer(Selector.of([exists(SOURCE_RESERVED, name)]))


def entity_peers(name: str, cluster: str) -> Iterable[Peer] | None:
    """The peers of an entity (policy-semantics 5.2), None for an unknown one."""
    match name:
        case "all":
            return (ANYONE,)
        case "none":
            return ()
        case "world":
            return tuple(reserved(label) for label in ("world", "world-ipv4", "world-ipv6"))
        case "cluster":
            labels = ("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver")
            pods = LabelPeer(Selector.of([equals(SOURCE_K8S, CLUSTER, cluster)]))
            return (*(reserved(label) for label in labels), pods)
        case (
            "host"
            | "init"
            | "ingress"
            | "unmanaged"
            | "remote-node"
            | "health"
            | "kube-apiserver"
            | "world-ipv4"
            | "world-ipv6"
        ):
            return (reserved(name),)
        case _:
            return None


ENTITIES = frozenset(
    {
        "all",
        "cluster",
        "health",
        "host",
        "ingress",
        "init",
        "kube-apiserver",
        "none",
        "remote-node",
        "unmanaged",
        "world",
        "world-ipv4",
        "world-ipv6",
    }
)
