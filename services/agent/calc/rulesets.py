"""HTTP rule sets and their numbers (1..1023), which policy entries carry.

A number that is not used any more is kept for one more round: entries that name it are removed after the tables are
written, and it must not mean something else in between.
"""

from __future__ import annotations

from services.agent.calc.maps import HttpRulesets
from services.agent.calc.numbers import StableNumbers
from services.policy.l7 import HttpRule

MAX_RULESETS = 1023
Rules = tuple[HttpRule, ...]


class Rulesets:
    """Distinct rule sets -> numbers."""

    def __init__(self) -> None:
        self._numbers = StableNumbers(1, MAX_RULESETS)
        self._used: dict[Rules, int] = {}
        self._retired: dict[int, Rules] = {}
        self._grown = False

    def take(self, rules: Rules) -> int | None:
        """The number of a rule set; None when all are taken, and the traffic must be refused."""
        known = self._used.get(rules)
        if known is not None:
            return known
        number = self._numbers.take(repr(rules), frozenset(self._retired))
        if number is not None:
            self._used[rules] = number
            self._grown = True
        return number

    def settle(self, used: set[Rules]) -> HttpRulesets | None:
        """Drop rule sets that nothing uses; what the datapath must know now, None where it knows enough."""
        for rules in [rules for rules in self._used if rules not in used]:
            self._retired[self._used.pop(rules)] = rules
            self._numbers.give_back(repr(rules))
        if not self._grown:
            return None
        self._grown = False
        change = HttpRulesets(self.desired())
        self._retired = {}
        return change

    def desired(self) -> dict[int, Rules]:
        """Everything that the datapath should know."""
        return {**{number: rules for rules, number in self._used.items()}, **self._retired}
