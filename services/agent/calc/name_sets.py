"""Rule sets of names (DNS rules, TLS server names) and their numbers, as `rulesets` has those of HTTP."""

from __future__ import annotations

from collections.abc import Iterable

from services.agent.abi.names import MAX_RULESETS, L7Kind
from services.agent.calc.numbers import StableNumbers
from services.policy.l7 import DNS, L7

Rules = tuple[L7Kind, frozenset[str]]


class NameSets:
    """Distinct sets of names -> numbers. A number is free again one writing after its last use, see `rulesets`."""

    def __init__(self) -> None:
        self._numbers = StableNumbers(1, MAX_RULESETS - 1)
        self._used: dict[Rules, int] = {}
        self._retired: dict[Rules, int] = {}
        self._grown = False

    def take(self, l7: L7) -> int | None:
        """The number of a rule set as policy entries carry it; None when all are taken: refuse the traffic."""
        rules = rules_of(l7)
        if rules in self._retired:
            self._used[rules] = self._retired.pop(rules)
        if rules not in self._used:
            number = self._numbers.take(_text(rules))
            if number is None:
                return None
            self._used[rules] = number
            self._grown = True
        return rules[0].ruleset(self._used[rules])

    def settle(self, used: Iterable[L7]) -> bool:
        """Retire rule sets that nothing uses; whether the datapath has to be told now."""
        wanted = {rules_of(l7) for l7 in used}
        for rules in [rules for rules in self._used if rules not in wanted]:
            self._retired[rules] = self._used.pop(rules)
        grown, self._grown = self._grown, False
        return grown

    def free_retired(self) -> None:
        """The datapath is about to be told: numbers of what nothing used before are free afterwards."""
        for rules in self._retired:
            self._numbers.give_back(_text(rules))
        self._retired = {}

    def desired(self) -> dict[int, frozenset[str]]:
        """Everything that the datapath should know: number -> patterns."""
        return {number: names for (_, names), number in [*self._used.items(), *self._retired.items()]}


def rules_of(l7: L7) -> Rules:
    """What a rule set is known by."""
    return (L7Kind.DNS if l7.kind == DNS else L7Kind.TLS), l7.names()


def _text(rules: Rules) -> str:
    return f"{rules[0].name} {' '.join(sorted(rules[1]))}"
