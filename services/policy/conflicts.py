"""Rules that cannot be merged (policy-semantics 3.4): what one port and one peer are asked to be at the same time.

Each document is valid by itself. Only where both select an endpoint there is no policy to compute: whoever enforces
keeps what the endpoint had, and says so.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

from services.model.objects import ObjectKey
from services.model.verdict import Direction
from services.policy.l7 import CONTEXTS, DNS, HTTP, L7, LISTENER, TERMINATING, TLS
from services.policy.peers import Peer
from services.policy.rules import Policy, Rule, Spec, Traffic
from services.policy.selectors import LabelView

Place = tuple[Direction, Peer, int, int, int, str]
"""What must be one thing only: direction, peer, protocol, first and last port, port name."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two rules, in two places of one or two policies."""

    first: ObjectKey
    second: ObjectKey
    first_path: str
    second_path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.first} {self.first_path} and {self.second} {self.second_path}: {self.reason}"

    def seen_by(self, key: ObjectKey) -> tuple[str, str]:
        """(path of the policy's own rule, what people should know of the other one)."""
        mine, other, place = self.first_path, self.second, self.second_path
        if key != self.first:
            mine, other, place = self.second_path, self.first, self.first_path
        return mine, f"conflicts with {other} {place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class _Claim:
    policy: ObjectKey
    rule: Rule
    traffic: Traffic

    def asks(self) -> Hashable:
        """What others must agree with."""
        l7 = self.traffic.l7
        if l7 is None:
            return self.rule.authentication
        exact = frozenset(rule for rule in l7.other if rule.kind in CONTEXTS | {LISTENER})
        return self.rule.authentication, frozenset(_parsers(l7)), exact


def conflicts(specs: Iterable[tuple[Policy, Spec]]) -> tuple[Conflict, ...]:
    """Every pair of rules for one subject that cannot hold together, in a fixed order."""
    # Of claims that ask for the same one stands for all: a thousand policies may have HTTP rules for one port.
    claims: dict[Place, dict[Hashable, _Claim]] = {}
    for policy, spec in specs:
        for rule in spec.rules:
            for place, claim in _claims(policy.key, rule):
                claims.setdefault(place, {}).setdefault(claim.asks(), claim)
    found: dict[Conflict, None] = {}
    for together in claims.values():
        found.update(dict.fromkeys(_pairs(together.values())))
    return tuple(found)


def conflicts_anywhere(policies: Iterable[Policy], subjects: Iterable[tuple[LabelView, bool]]) -> tuple[Conflict, ...]:
    """The conflicts that any subject, given as (labels, whether it is a node), suffers from: the same on every node
    that knows the same policies and subjects."""
    claims: dict[tuple[bool, Place], list[tuple[Spec, _Claim]]] = {}
    for policy in policies:
        for spec in policy.specs:
            for rule in spec.rules:
                for place, claim in _claims(policy.key, rule):
                    claims.setdefault((spec.host, place), []).append((spec, claim))
    # Usually nothing is left to look at here.
    clashing = [(key[0], together) for key, together in claims.items() if _clash(claim for _, claim in together)]
    if not clashing:
        return ()
    found: dict[Conflict, None] = {}
    for view, host in subjects:
        for of_nodes, together in clashing:
            if of_nodes == host:
                mine: dict[Hashable, _Claim] = {}
                for spec, claim in together:
                    if spec.subject.matches(view):
                        mine.setdefault(claim.asks(), claim)
                found.update(dict.fromkeys(_pairs(mine.values())))
    return tuple(sorted(found, key=str))


def _clash(claims: Iterable[_Claim]) -> bool:
    return any(True for _ in _pairs({claim.asks(): claim for claim in claims}.values()))


def _pairs(claims: Iterable[_Claim]) -> Iterator[Conflict]:
    for first, second in combinations(claims, 2):
        reason = _reason(first, second)
        if reason:
            yield Conflict(first.policy, second.policy, first.rule.path, second.rule.path, reason)


def _claims(key: ObjectKey, rule: Rule) -> Iterator[tuple[Place, _Claim]]:
    if rule.deny:
        return
    for traffic in rule.traffic:
        if traffic.l7 is None and not rule.authentication:
            continue
        for peer in rule.peers:
            place = (rule.direction, peer, traffic.protocol, traffic.low, traffic.high, traffic.name)
            yield place, _Claim(key, rule, traffic)


def _reason(first: _Claim, second: _Claim) -> str:
    """Why two claims to one place cannot both hold; empty where they can."""
    modes = {claim.rule.authentication for claim in (first, second)} - {""}
    if len(modes) > 1:
        return f"authentication is both {' and '.join(sorted(modes))}"
    if first.traffic.l7 is None or second.traffic.l7 is None:
        return ""
    return _l7_reason(first.traffic.l7, second.traffic.l7)


def _l7_reason(first: L7, second: L7) -> str:
    parsers = _parsers(first) | _parsers(second)
    beyond_tls = parsers - {TLS}
    if len(beyond_tls) > 1:
        return f"one port has {' and '.join(sorted(beyond_tls))} rules"
    if TLS in parsers and beyond_tls:
        if beyond_tls & {DNS, LISTENER}:
            return f"one port has {beyond_tls.pop()} rules and server names"
        if not any(rule.kind == TERMINATING for rule in first.other | second.other):
            return f"server names and {beyond_tls.pop()} rules need terminatingTLS"
    for kind in sorted(CONTEXTS):
        contexts = [{rule for rule in l7.other if rule.kind == kind} for l7 in (first, second)]
        if all(contexts) and contexts[0] != contexts[1]:
            return "one port has two TLS contexts"
    listeners = {rule for rule in first.other | second.other if rule.kind == LISTENER}
    priorities = {dict(rule.fields).get("priority", "0") for rule in listeners}
    if len(listeners) > 1 and len(priorities) == 1:
        return "one port has two listeners of one priority"
    return ""


def _parsers(l7: L7) -> set[str]:
    found = {HTTP} if l7.http else set()
    if l7.dns:
        found.add(DNS)
    found |= {rule.kind for rule in l7.other} - CONTEXTS
    return found or ({l7.kind} - CONTEXTS)
