"""A cluster's policies at one moment, and what they say about connections between any two parties.

In: policies in force (references followed), the mode. Out: `Answer`s per direction, for people and for comparisons: two
worlds that differ in their policies are what `simulate` compares. Nothing here knows which node anybody runs on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from services.model.addresses import IPNetwork
from services.model.identity import Reserved, is_cluster
from services.model.labels import POD_NAMESPACE, SOURCE_CIDR, SOURCE_K8S, SOURCE_RESERVED, Label, Labels
from services.model.verdict import Direction
from services.policy.conflicts import Conflict, conflicts
from services.policy.explain import Explanation, explain
from services.policy.l7 import ORIGINATING, Request, RequestMatcher
from services.policy.peers import CidrPeer, IpBlockPeer, Party, cidr_key
from services.policy.rules import Policy, Spec
from services.policy.selectors import LabelView
from services.policy.verdict import Decision, Mode, Outcome, applying, decide

Specs = tuple[tuple[Policy, Spec], ...]
OUTSIDE = -1
"""The number of parties that stand for a prefix: policy looks at their labels only."""


class Fate(Enum):
    """What a connection, or one request on it, meets in one direction."""

    ALLOWED = "allowed"
    REQUESTS = "allowed, requests are filtered"
    """Connections pass; each request must meet HTTP rules, each question or server's name those about names."""
    REFUSED = "refused"
    """A request that meets no HTTP rule, or a condition that is not enforced and so lets nobody in."""
    DENIED = "denied by a rule"
    DROPPED = "dropped by default"
    CONFLICT = "rules conflict: whoever runs keeps what it had, others are closed"
    """The subject's rules cannot be merged (`conflicts`)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A fate; `requests` are the HTTP rules that requests must meet, or why there is no better fate, as text."""

    fate: Fate
    requests: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether what was asked about is let through."""
        return self.fate in (Fate.ALLOWED, Fate.REQUESTS)

    def __str__(self) -> str:
        return f"{self.fate.value}: {', '.join(self.requests)}" if self.requests else self.fate.value


ALLOWED = Answer(Fate.ALLOWED)


@dataclass(frozen=True, slots=True)
class Question:
    """A connection, or with `request` a request on it. `port` is the destination's; of ICMP the type."""

    source: Party
    destination: Party
    protocol: int
    port: int
    request: Request | None = None

    def sides(self, direction: Direction) -> tuple[Party, Party]:
        """(subject, peer) of a direction."""
        pair = (self.source, self.destination)
        return pair if direction == Direction.EGRESS else (pair[1], pair[0])


class World:
    """Policies and how they are enforced. `meets` decides whether a request meets an HTTP rule; without `hosts`
    policies for nodes are not enforced."""

    def __init__(self, policies: Iterable[Policy], mode: Mode, meets: RequestMatcher, *, hosts: bool = True) -> None:
        self.mode, self._meets, self._hosts = mode, meets, hosts
        self.policies = tuple(sorted(policies, key=lambda policy: policy.key))
        self._specs: dict[tuple[LabelView, bool], Specs] = {}
        self._conflicts: dict[tuple[LabelView, bool], tuple[Conflict, ...]] = {}
        self._by_namespace: dict[str, list[Policy]] = {}
        for policy in self.policies:
            self._by_namespace.setdefault(policy.key.namespace, []).append(policy)
        named = dict.fromkeys(
            peer
            for policy in self.policies
            for spec in policy.specs
            for rule in spec.rules
            for peer in rule.peers
            if isinstance(peer, CidrPeer | IpBlockPeer)
        )
        self.prefixes = frozenset(prefix for peer in named for prefix in peer.prefixes())
        self.blocks = tuple(peer for peer in named if isinstance(peer, IpBlockPeer))
        """Blocks may tell pods of one identity apart."""

    def specs(self, subject: Party) -> Specs:
        """What selects a pod, or a node by its labels; nothing selects the outside."""
        if not is_endpoint(subject) or (subject.node is not None and not self._hosts):
            return ()
        key = _subject_key(subject)
        found = self._specs.get(key)
        if found is None:
            view, host = key
            namespace = "" if host else view.value(SOURCE_K8S, POD_NAMESPACE) or ""
            near = [policy for space in sorted({"", namespace}) for policy in self._by_namespace.get(space, ())]
            found = self._specs[key] = tuple(applying(near, Party(subject.id, view), host=host))
        return found

    def conflicts(self, subject: Party) -> tuple[Conflict, ...]:
        """The subject's rules that cannot be merged."""
        if self.mode is Mode.NEVER:
            return ()
        key = _subject_key(subject)
        found = self._conflicts.get(key)
        if found is None:
            found = self._conflicts[key] = conflicts(self.specs(subject))
        return found

    def outside(self, prefix: IPNetwork) -> Party:
        """Who an outside address of a prefix is: the longest prefix that policies name, else the world."""
        around = [
            known
            for known in self.prefixes
            if known.version == prefix.version and prefix.subnet_of(known)  # type: ignore[arg-type]
        ]
        world = Label(SOURCE_RESERVED, f"world-ipv{prefix.version}")
        if not around:
            return Party(OUTSIDE, LabelView(Labels([world])))
        nearest = max(around, key=lambda known: known.prefixlen)
        return Party(OUTSIDE, LabelView(Labels([Label(SOURCE_CIDR, cidr_key(nearest)), world])))

    def explain(self, question: Question, direction: Direction) -> Explanation:
        """Every rule of a direction and what it had to do with the question."""
        subject, peer = question.sides(direction)
        return explain(
            self.specs(subject),
            direction,
            subject,
            peer,
            question.protocol,
            question.port,
            self.mode,
            request=question.request,
            meets=self._meets,
            host=subject.node is not None,
        )

    def answer(self, question: Question, direction: Direction) -> Answer:
        """What a direction says; pods have policy, and nodes whose labels are known."""
        subject, peer = question.sides(direction)
        if not is_endpoint(subject):
            return ALLOWED
        clashing = self.conflicts(subject)
        if clashing:
            return Answer(Fate.CONFLICT, tuple(dict.fromkeys(str(conflict) for conflict in clashing)))
        decision = decide(
            self.specs(subject),
            direction,
            subject,
            peer,
            question.protocol,
            question.port,
            mode=self.mode,
            host=subject.node is not None,
        )
        return self.judge(decision, direction, question.request, host=subject.node is not None)

    def judge(self, decision: Decision, direction: Direction, request: Request | None, *, host: bool = False) -> Answer:
        """A decision as it is enforced: what cannot be enforced lets nobody through. Nothing looks into what a node
        (`host`) says or hears."""
        if decision.outcome is Outcome.DENY:
            return Answer(Fate.DENIED)
        if decision.outcome is Outcome.DROP:
            return Answer(Fate.DROPPED)
        if decision.authentication:
            return Answer(Fate.REFUSED, ("authentication is not enforced here",))
        l7 = decision.l7
        if l7 is None or (l7.everything and not l7.other):
            return ALLOWED
        if host:
            return Answer(Fate.REFUSED, (f"{l7.kind} rules are not enforced for nodes",))
        originating = any(rule.kind == ORIGINATING for rule in l7.other)
        if l7.by_names and not originating and direction == Direction.EGRESS:
            return Answer(Fate.REQUESTS, tuple(f"{l7.kind} {name}" for name in l7.texts()))
        if not l7.http or originating:
            return Answer(Fate.REFUSED, (f"{l7.kind} rules on {direction.name.lower()} are not enforced",))
        if request is None:
            return Answer(Fate.REQUESTS, tuple(str(rule) for rule in l7.http_rules()))
        return ALLOWED if any(self._meets(rule, request) for rule in l7.http) else Answer(Fate.REFUSED)


def is_endpoint(party: Party) -> bool:
    """Whether policy can select the party: pods, and nodes whose labels are known, not the outside."""
    return is_cluster(party.id) or party.id == Reserved.INIT or party.node is not None


def _subject_key(subject: Party) -> tuple[LabelView, bool]:
    return (subject.view, False) if subject.node is None else (subject.node, True)
