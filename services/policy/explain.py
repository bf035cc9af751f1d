"""Why a verdict is what it is: every rule that was considered, and which part of it did not fit.

In: the specs of an endpoint and a question. Out: the decision, and all its rules with what did not fit. A drop for want
of a rule is understood by the rule that almost matched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from services.model.verdict import Direction
from services.policy.l7 import Request, RequestMatcher
from services.policy.peers import Party
from services.policy.rules import Policy, Rule, Spec, Traffic
from services.policy.verdict import Decision, Mode, decide, traffic_covers


class Part(Enum):
    """What of a rule did not fit."""

    PEER = "peer"
    PROTOCOL = "protocol"
    PORT = "port"
    L7 = "request"


WEIGHTS = {Part.L7: 1, Part.PORT: 2, Part.PROTOCOL: 4, Part.PEER: 8}
"""A wrong request is nearest to matching, then a wrong port, a wrong protocol; a wrong peer is farthest."""


@dataclass(frozen=True, slots=True)
class Considered:
    """A rule that was looked at. No failed part: it matched."""

    policy: Policy
    rule: Rule
    failed: tuple[Part, ...]

    @property
    def distance(self) -> int:
        """How far from matching."""
        return sum(WEIGHTS[part] for part in self.failed)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and what was considered for it, in the policies' order."""

    decision: Decision
    considered: tuple[Considered, ...]

    @property
    def nearest(self) -> Considered | None:
        """The allow rule that came nearest to matching without doing so; None where there is none."""
        missed = [one for one in self.considered if one.failed and not one.rule.deny]
        return min(missed, key=lambda one: one.distance, default=None)


def explain(
    specs: Iterable[tuple[Policy, Spec]],
    direction: Direction,
    subject: Party,
    peer: Party,
    protocol: int,
    port: int,
    mode: Mode = Mode.DEFAULT,
    *,
    request: Request | None = None,
    meets: RequestMatcher | None = None,
    host: bool = False,
) -> Explanation:
    """Decide, and say what each rule of the direction had to do with it; with `request`, L7 rules have to meet it.

    `host`: the subject is a node.
    """
    specs = list(specs)
    destination = subject if direction == Direction.INGRESS else peer
    considered = []
    for policy, spec in specs:
        for rule in spec.rules:
            if rule.direction == direction:
                failed = _failed(rule, peer, destination, protocol, port)
                if (
                    Part.PORT not in failed
                    and Part.PROTOCOL not in failed
                    and request is not None
                    and meets is not None
                ):
                    covering = [item for item in rule.traffic if traffic_covers(item, destination, protocol, port)]
                    if not any(permits(item, request, meets) for item in covering):
                        failed = (*failed, Part.L7)
                considered.append(Considered(policy, rule, failed))
    decision = decide(specs, direction, subject, peer, protocol, port, mode=mode, host=host)
    return Explanation(decision, tuple(considered))


def permits(traffic: Traffic, request: Request, meets: RequestMatcher) -> bool:
    """Whether the L7 rules of a port entry let a request pass; without HTTP rules there is nothing to meet."""
    return traffic.l7 is None or not traffic.l7.http or any(meets(rule, request) for rule in traffic.l7.http)


def _failed(rule: Rule, peer: Party, destination: Party, protocol: int, port: int) -> tuple[Part, ...]:
    failed: list[Part] = []
    if not any(one.matches(peer) for one in rule.peers):
        failed.append(Part.PEER)
    if not any(traffic_covers(traffic, destination, protocol, port) for traffic in rule.traffic):
        same_protocol = any(traffic.protocol == protocol for traffic in rule.traffic)
        failed.append(Part.PORT if same_protocol else Part.PROTOCOL)
    return tuple(failed)
