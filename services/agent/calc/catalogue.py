"""Rule numbers and what they lead back to: every map entry knows its rule, every rule its policy.

Numbers are stable across restarts (31 bits, from kind, namespace, name and the rule's place), because conntrack entries
and flows outlive the agent. Rules that are gone stay known for a while: events about them may still be on their way.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from services.agent.calc.numbers import StableNumbers
from services.model.objects import ObjectKey
from services.model.verdict import Direction
from services.policy.rules import Policy, Rule

REMEMBERED = 8192
WHOLE_POLICY = -1


@dataclass(frozen=True, slots=True)
class RuleRef:
    """A rule, or (index -1) a policy as a whole in one direction."""

    kind: str
    namespace: str
    name: str
    uid: str
    direction: Direction
    index: int
    labels: tuple[str, ...]
    revision: int
    """Of the engine, when this version of the policy came into force."""
    path: str = ""
    """Where the rule stands in its document: `spec.ingress[0]`."""


FULL_RULE = (1 << 31) - 1
"""The rule id of entries that deny everything because the policy map has no room for the endpoint's own."""
FULL_REF = RuleRef("PolicyMapFull", "", "policy-map-full", "", Direction.INGRESS, WHOLE_POLICY, (), 0)


class Catalogue:
    """rule id -> RuleRef."""

    def __init__(self) -> None:
        self._numbers = StableNumbers(1, FULL_RULE - 1)
        self._refs: dict[int, RuleRef] = {}
        self._gone: OrderedDict[int, RuleRef] = OrderedDict()

    def __len__(self) -> int:
        return len(self._refs)

    def add(self, policy: Policy, revision: int) -> None:
        """Number the rules of a policy that came into force."""
        for rule in rules_of(policy):
            number = self._numbers.take(rule_name(policy.key, rule))
            assert number is not None
            self._gone.pop(number, None)
            self._refs[number] = make_ref(policy, rule.direction, revision, rule)

    def remove(self, policy: Policy, successor: Policy | None = None) -> None:
        """A policy is not in force any more, or only as `successor`; lost numbers stay readable for a while."""
        kept = {rule_name(successor.key, rule) for rule in rules_of(successor)} if successor else set()
        for rule in rules_of(policy):
            name = rule_name(policy.key, rule)
            if name in kept:
                continue
            number = self._numbers.take(name)
            assert number is not None
            self._numbers.give_back(name)
            ref = self._refs.pop(number, None)
            if ref is not None:
                self._gone[number] = ref
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

    def number(self, key: ObjectKey, rule: Rule) -> int:
        """The number of a rule in force."""
        number = self._numbers.take(rule_name(key, rule))
        assert number is not None
        return number

    def get(self, rule_id: int) -> RuleRef | None:
        """What a rule id leads back to; None for 0 and for numbers that are long gone."""
        if rule_id == FULL_RULE:
            return FULL_REF
        return self._refs.get(rule_id) or self._gone.get(rule_id)


def rules_of(policy: Policy) -> list[Rule]:
    """All rules of all specs."""
    return [rule for spec in policy.specs for rule in spec.rules]


def rule_name(key: ObjectKey, rule: Rule) -> str:
    """What makes a rule unique: its policy and its place there."""
    return f"{key.kind}/{key.namespace}/{key.name}/{rule.path}"


def make_ref(policy: Policy, direction: Direction, revision: int, rule: Rule | None = None) -> RuleRef:
    """The reference to a rule, or without one to the policy as a whole."""
    return RuleRef(
        policy.key.kind,
        policy.key.namespace,
        policy.key.name,
        policy.uid,
        direction,
        WHOLE_POLICY if rule is None else rule.index,
        policy.labels,
        revision,
        "" if rule is None else rule.path,
    )
