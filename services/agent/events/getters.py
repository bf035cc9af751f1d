"""What the event pipeline has to ask others: one question per protocol, answered from memory, at once.

Answers are looked up once per new thing, not per event: they are kept until `generation` changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.flows.entries import NearestRule, PolicyRef, ServiceRef


@dataclass(frozen=True, slots=True)
class PodRef:
    """Who has an address."""

    namespace: str
    pod: str
    endpoint_id: int = 0
    """The endpoint's number where it is on this node, else 0."""
    workload: tuple[str, str] = ("", "")
    """(kind, name)"""


class IdentityGetter(Protocol):
    """Identity -> labels."""

    def identity_labels(self, identity: int) -> tuple[str, ...]:
        """Sorted label texts; () for a number that is not known."""
        ...


class AddressGetter(Protocol):
    """Address -> pod, local or remote."""

    def pod_at(self, address: bytes) -> PodRef | None:
        """The pod that has this address (16 bytes, IPv4 as v4-mapped), if any."""
        ...


class DnsGetter(Protocol):
    """Address -> names."""

    def dns_names(self, address: bytes) -> tuple[str, ...]:
        """The names that pods of this node learned the address under, sorted, without final dots."""
        ...


class PolicyGetter(Protocol):
    """Rule -> policy; endpoint -> what isolates it."""

    def rule_policy(self, rule_id: int) -> PolicyRef | None:
        """The policy object that a rule id belongs to; None where it is gone already."""
        ...

    def isolating(self, endpoint_id: int, direction: int) -> tuple[PolicyRef, ...]:
        """The policies because of which an endpoint denies by default in a direction (1 ingress, 2 egress)."""
        ...


class NearestGetter(Protocol):
    """Why default deny: the rule that almost let a connection pass."""

    def nearest(self, endpoint_id: int, direction: int, peer: int, protocol: int, port: int) -> NearestRule | None:
        """The allow rule that came nearest; None where there is none, or where the endpoint or peer is gone.

        `port` is the destination's; of ICMP the type. `peer` is the part of an identity that rules divide.
        """
        ...

    def divided(self) -> frozenset[int]:
        """Identities whose addresses rules tell apart."""
        ...

    def part_at(self, identity: int, address: bytes) -> int:
        """What policy knows an address of a divided identity by."""
        ...


class ServiceGetter(Protocol):
    """Service id -> name."""

    def service_ref(self, service_id: int) -> ServiceRef | None:
        """The Service behind a datapath service id."""
        ...


class Names(IdentityGetter, AddressGetter, DnsGetter, PolicyGetter, NearestGetter, ServiceGetter, Protocol):
    """All of it, in one object that the agent makes from its catalogues."""

    @property
    def generation(self) -> int:
        """Changes whenever any answer may have changed. Cheap: it is read several times a second."""
        ...


class LostCounters(Protocol):
    """The kernel's own counts of records that found a ring full."""

    def read(self) -> dict[tuple[int, int], int]:
        """(event kind, cpu) -> events lost since the map was made. Only ever grows."""
        ...
