"""Looks up what rules only refer to: Services (toServices) and CIDR groups become plain peers.

A reference that leads nowhere is nobody: a rule never widens because something is missing.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable
from typing import Protocol

from services.model.addresses import IPAddress, IPNetwork
from services.model.labels import POD_NAMESPACE, SOURCE_CIDR_GROUP, SOURCE_K8S, Label, Labels
from services.model.objects import Service
from services.policy.peers import CidrGroupPeer, CidrPeer, LabelPeer, Peer, ServicePeer
from services.policy.rules import Policy, Rule, Spec
from services.policy.selectors import LabelView, Selector, equals


@dataclasses.dataclass(frozen=True, slots=True)
class CidrGroup:
    """A CiliumCIDRGroup: a named, labelled list of prefixes."""

    name: str
    prefixes: tuple[IPNetwork, ...]
    labels: tuple[tuple[str, str], ...] = ()


class Referents(Protocol):
    """What references can lead to."""

    def services(self) -> Iterable[Service]: ...

    def backends(self, service: Service) -> Iterable[IPAddress]: ...

    def cidr_groups(self) -> Iterable[CidrGroup]: ...


def has_references(policy: Policy) -> bool:
    """Whether the policy's meaning depends on Services or CIDR groups."""
    return any(
        isinstance(peer, ServicePeer | CidrGroupPeer)
        for spec in policy.specs
        for rule in spec.rules
        for peer in rule.peers
    )


def resolve(policy: Policy, referents: Referents) -> Policy:
    """The policy with every reference replaced by what it leads to now."""
    if not has_references(policy):
        return policy
    return dataclasses.replace(policy, specs=tuple(_resolve_spec(spec, referents) for spec in policy.specs))


def _resolve_spec(spec: Spec, referents: Referents) -> Spec:
    return dataclasses.replace(spec, rules=tuple(_resolve_rule(rule, referents) for rule in spec.rules))


def _resolve_rule(rule: Rule, referents: Referents) -> Rule:
    peers: dict[Peer, None] = {}
    for peer in rule.peers:
        match peer:
            case ServicePeer():
                found = _service_peers(peer, referents)
            case CidrGroupPeer():
                found = _group_peers(peer, referents)
            case _:
                found = [peer]
        peers.update(dict.fromkeys(found))
    return dataclasses.replace(rule, peers=tuple(peers))


def _service_peers(wanted: ServicePeer, referents: Referents) -> list[Peer]:
    """Pods by the Service's own selector, or the addresses of its hand-made endpoints (policy-semantics 2.10)."""
    found: list[Peer] = []
    for service in sorted(referents.services(), key=lambda service: (service.namespace, service.name)):
        if wanted.namespace and service.namespace != wanted.namespace:
            continue
        if wanted.selector is not None:
            view = LabelView(Labels(Label(SOURCE_K8S, key, value) for key, value in service.labels.items()))
            if not wanted.selector.matches(view):
                continue
        elif service.name != wanted.name:
            continue
        if service.selector:
            terms = [equals(SOURCE_K8S, key, value) for key, value in service.selector.items()]
            found.append(LabelPeer(Selector.of([*terms, equals(SOURCE_K8S, POD_NAMESPACE, service.namespace)])))
        else:
            found += [
                CidrPeer(ipaddress.ip_network(address)) for address in sorted(referents.backends(service), key=str)
            ]
    return found


def _group_peers(wanted: CidrGroupPeer, referents: Referents) -> list[Peer]:
    found: list[Peer] = []
    for group in sorted(referents.cidr_groups(), key=lambda group: group.name):
        if wanted.selector is not None:
            view = LabelView(Labels(Label(SOURCE_CIDR_GROUP, key, value) for key, value in group.labels))
            if not wanted.selector.matches(view):
                continue
        elif group.name != wanted.name:
            continue
        found += [CidrPeer(prefix, wanted.excepts) for prefix in group.prefixes]
    return found
