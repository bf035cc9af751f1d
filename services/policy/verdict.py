"""What policies mean, said plainly (policy-semantics 3.2): the oracle that the compiler is tested against.

No indexes, no caches: every rule is looked at for every question. Explaining a verdict to people uses it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from services.model.identity import Reserved
from services.model.labels import SOURCE_RESERVED
from services.model.verdict import Direction
from services.policy.l7 import L7
from services.policy.peers import Party
from services.policy.rules import Policy, Rule, Spec, Traffic, merged_l7
from services.policy.server_names import asking_everywhere


class Mode(Enum):
    """When policy is enforced at all (policy-semantics 3.1)."""

    DEFAULT = "default"
    ALWAYS = "always"
    NEVER = "never"


class Outcome(Enum):
    """The verdict for one direction of a connection."""

    ALLOW = "allow"
    DENY = "deny"
    """A deny rule matched."""
    DROP = "drop"
    """No rule matched and the direction is closed."""


@dataclass(frozen=True, slots=True)
class Match:
    """A rule that matched, and the policy it stands in."""

    policy: Policy
    rule: Rule


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome, the rules that led to it, and what is still asked of each request."""

    outcome: Outcome
    matches: tuple[Match, ...] = ()
    l7: L7 | None = None
    """L7 rules that requests must meet; None where a plain allow matched too, or there are none."""
    inspected: bool = False
    """Whether any matching allow rule has L7 rules: an implementation with a proxy would redirect."""
    authentication: bool = False


def applying(policies: Iterable[Policy], subject: Party, *, host: bool = False) -> list[tuple[Policy, Spec]]:
    """The specs whose subject is this endpoint (or, with `host`, this node)."""
    return [
        (policy, spec)
        for policy in policies
        for spec in policy.specs
        if spec.host == host and spec.subject.matches(subject.view)
    ]


def is_enforced(
    specs: Iterable[tuple[Policy, Spec]], direction: Direction, subject: Party, mode: Mode, *, host: bool = False
) -> bool:
    """Whether the endpoint's direction is policed: rules have a say, or the mode or a missing identity demand it.

    A node (`host`) is policed by rules alone: one that the mode closed could not be told anything any more.
    """
    if mode is Mode.NEVER:
        return False
    if _is_always_policed(subject, mode, host=host):
        return True
    return any(spec.touches(direction) for _, spec in specs)


def is_closed(
    specs: Iterable[tuple[Policy, Spec]], direction: Direction, subject: Party, mode: Mode, *, host: bool = False
) -> bool:
    """Whether what no rule allows is dropped."""
    if mode is Mode.NEVER:
        return False
    if _is_always_policed(subject, mode, host=host):
        return True
    return any(direction in spec.default_deny for _, spec in specs)


def _is_always_policed(subject: Party, mode: Mode, *, host: bool) -> bool:
    return not host and (mode is Mode.ALWAYS or subject.view.value(SOURCE_RESERVED, "init") is not None)


def decide(
    specs: Iterable[tuple[Policy, Spec]],
    direction: Direction,
    subject: Party,
    peer: Party,
    protocol: int,
    port: int,
    *,
    mode: Mode = Mode.DEFAULT,
    host: bool = False,
) -> Decision:
    """The verdict for a connection between `subject` and `peer`; `port` is the destination's, or the ICMP type."""
    if mode is Mode.NEVER:
        return Decision(Outcome.ALLOW)
    specs = list(specs)
    destination = subject if direction == Direction.INGRESS else peer
    rules = ((policy, rule) for policy, spec in specs for rule in spec.rules if rule.direction == direction)
    found = [
        (Match(policy, rule), traffic)
        for policy, rule in asking_everywhere(rules)
        if any(one.matches(peer) for one in rule.peers)
        for traffic in rule.traffic
        if traffic_covers(traffic, destination, protocol, port)
    ]
    denying = _unique(match for match, _ in found if match.rule.deny)
    if denying:
        return Decision(Outcome.DENY, denying)
    allowing = [(match, traffic) for match, traffic in found if not match.rule.deny]
    matches = _unique(match for match, _ in allowing)
    # The local host must reach its pods (health checks); only a deny rule can stop it.
    local_host = direction == Direction.INGRESS and peer.id == Reserved.HOST and not host
    plain = local_host or not is_closed(specs, direction, subject, mode, host=host)
    if not allowing:
        return Decision(Outcome.ALLOW if plain else Outcome.DROP)
    narrowed = [traffic.l7 for _, traffic in allowing if traffic.l7 is not None]
    merged = merged_l7((traffic for _, traffic in allowing), opened=plain)
    modes = {match.rule.authentication for match in matches}
    required = bool(modes & {"required", "test-always-fail"}) and "disabled" not in modes and not local_host
    return Decision(Outcome.ALLOW, matches, merged, bool(narrowed), required)


def traffic_covers(traffic: Traffic, destination: Party, protocol: int, port: int) -> bool:
    """Whether a packet fits, named ports being those of the destination."""
    if traffic.name:
        return protocol == traffic.protocol and port in destination.ports.get((traffic.name, protocol), ())
    return traffic.covers(protocol, port)


def _unique(matches: Iterable[Match]) -> tuple[Match, ...]:
    return tuple({(match.policy.key, match.rule.path): match for match in matches}.values())
