"""Normalised policies: what every kind of policy document becomes before anything is computed.

Input: the readers (`networkpolicy`, `cilium`). Output: the declarative oracle (`verdict`) and the compiler (`compile`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.model.objects import ObjectKey
from services.model.verdict import Direction, Protocol
from services.policy.l7 import ANY_NAME, DNS, L7
from services.policy.peers import Peer
from services.policy.problems import Problem
from services.policy.selectors import Selector

LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Traffic:
    """What may pass: a protocol (ANY = every one) and a range of ports (of ICMP: types), or a named port.

    `low`..`high` over the whole range means every port. `l7` narrows further, None does not.
    """

    protocol: int = Protocol.ANY
    low: int = 0
    high: int = LAST_PORT
    name: str = ""
    l7: L7 | None = None

    def covers(self, protocol: int, port: int) -> bool:
        """Whether a packet fits; named ports must have been resolved before."""
        if self.protocol == Protocol.ANY:
            return True
        return not self.name and self.protocol == protocol and self.low <= port <= self.high

    @property
    def breadth(self) -> int:
        """Rank from broad to narrow: 0 every protocol, 1 a whole protocol, then by size of the range."""
        if self.protocol == Protocol.ANY:
            return 0
        return 1 + LAST_PORT - (self.high - self.low)

    def __str__(self) -> str:
        if self.protocol == Protocol.ANY:
            return "everything"
        try:
            protocol = Protocol(self.protocol).name
        except ValueError:
            protocol = str(self.protocol)
        if self.name:
            ports = self.name
        elif (self.low, self.high) == (0, LAST_PORT):
            ports = "*"
        else:
            ports = str(self.low) if self.low == self.high else f"{self.low}-{self.high}"
        return f"{ports}/{protocol}" + (f" {self.l7}" if self.l7 else "")


EVERYTHING = (Traffic(),)
EVERY_NAME = L7(DNS, dns=frozenset({ANY_NAME}))


def merged_l7(allowed: Iterable[Traffic], *, opened: bool = False) -> L7 | None:
    """What is still asked of each request where all of these allow (policy-semantics 3.4); None: nothing.

    `opened`: what no rule allows passes as well.

    A plain allow ends all asking, but for DNS: questions are looked at all the same, because addresses are learned from
    their answers. There a plain allow of the port opens every name, and one of all ports says nothing about names.
    """
    items = list(allowed)
    merged: L7 | None = None
    for item in items:
        if item.l7 is not None:
            merged = item.l7 if merged is None else merged.union(item.l7)
    if merged is None:
        return None
    plain = [item for item in items if item.l7 is None]
    if merged.kind == DNS:
        opens = opened or any(item.breadth > 1 or item.name for item in plain)
        return merged.union(EVERY_NAME) if opens else merged
    return None if plain or opened else merged


@dataclass(frozen=True, slots=True)
class Rule:
    """One element of an ingress or egress list: peers (one of) AND traffic (one of). Nobody or nothing: no effect."""

    direction: Direction
    path: str
    """Where it stands in the document: `spec.ingress[0]`."""
    index: int
    """Position among the rules of its direction in the whole document, allow rules first."""
    peers: tuple[Peer, ...]
    traffic: tuple[Traffic, ...] = EVERYTHING
    deny: bool = False
    authentication: str = ""
    """'' (not given), 'disabled', 'required' or 'test-always-fail'."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A subject and the rules for it."""

    subject: Selector
    rules: tuple[Rule, ...]
    default_deny: frozenset[Direction]
    """Directions in which what no rule allows is dropped."""
    host: bool = False
    """The subject is the node itself (`nodeSelector`), not its endpoints."""
    log: str = ""

    def touches(self, direction: Direction) -> bool:
        """Whether the spec has any say in a direction."""
        return direction in self.default_deny or any(rule.direction == direction for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Policy:
    """An accepted policy document."""

    key: ObjectKey
    specs: tuple[Spec, ...]
    uid: str = ""
    labels: tuple[str, ...] = ()
    """Labels that flows show for the policy (policy-semantics 1.8)."""
    warnings: tuple[Problem, ...] = field(default=(), compare=False)
