"""HTTP rule sets and their numbers (1..1022), which policy entries carry.

The tables are written before the policy entries that name them, and entries that name a former rule set are removed
after that. So a rule set that nothing uses any more stays in the tables for one more writing, and its number is free
only then: it never means something else while an old entry names it.
"""

from __future__ import annotations

from services.agent.calc.maps import HttpRulesets
from services.agent.calc.numbers import StableNumbers
from services.policy.l7 import HttpRule

MAX_RULESETS = 1022
Rules = tuple[HttpRule, ...]


class Rulesets:
    """Distinct rule sets -> numbers."""

    def __init__(self) -> None:
        self._numbers = StableNumbers(1, MAX_RULESETS)
        self._used: dict[Rules, int] = {}
        self._retired: dict[Rules, int] = {}
        self._grown = False

    def take(self, rules: Rules) -> int | None:
        """The number of a rule set; None when all are taken, and the traffic must be refused."""
        known = self._used.get(rules)
        if known is not None:
            return known
        if rules in self._retired:
            self._used[rules] = self._retired.pop(rules)
            return self._used[rules]
        number = self._numbers.take(repr(rules))
        if number is not None:
            self._used[rules] = number
            self._grown = True
        return number

    def settle(self, used: set[Rules]) -> HttpRulesets | None:
        """Retire rule sets that nothing uses; what the datapath must know now, None where it knows enough."""
        for rules in [rules for rules in self._used if rules not in used]:
            self._retired[rules] = self._used.pop(rules)
        if not self._grown:
            return None
        self._grown = False
        change = HttpRulesets(self.desired())
        for rules in self._retired:
            self._numbers.give_back(repr(rules))
        self._retired = {}
        return change

    def desired(self) -> dict[int, Rules]:
        """Everything that the datapath should know."""
        return {number: rules for rules, number in [*self._used.items(), *self._retired.items()]}
