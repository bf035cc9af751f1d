"""What the event pipeline has to ask others: one question per protocol, answered from memory, at once.

Answers are looked up once per new thing, not per event: they are kept until `generation` changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.flows.entries import PolicyRef, ServiceRef


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


class PolicyGetter(Protocol):
    """Rule -> policy; endpoint -> what isolates it."""

    def rule_policy(self, rule_id: int) -> PolicyRef | None:
        """The policy object that a rule id belongs to; None where it is gone already."""
        ...

    def isolating(self, endpoint_id: int, direction: int) -> tuple[PolicyRef, ...]:
        """The policies because of which an endpoint denies by default in a direction (1 ingress, 2 egress)."""
        ...


class ServiceGetter(Protocol):
    """Service id -> name."""

    def service_ref(self, service_id: int) -> ServiceRef | None:
        """The Service behind a datapath service id."""
        ...


class Names(IdentityGetter, AddressGetter, PolicyGetter, ServiceGetter, Protocol):
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
