"""toFQDNs selectors of this node, and identities for what names can match of them.

Names come to be known by the kernel, one answer after the other; which sets of selectors a name can match at all is
known before. Each set has an identity: policy is compiled for it like for any other, and the kernel finds it by the
state in which the selectors' automaton ends. An address with several names has the say of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.agent.calc.identities import Identities
from services.agent.calc.names import NO_SELECTORS, FqdnAutomaton, compile_selectors
from services.agent.calc.numbers import StableNumbers
from services.model.identity import FQDN_MIN, LOCAL_MAX, NumericIdentity
from services.model.labels import SOURCE_FQDN, Label, Labels

MAX_CLASSES = 4096
"""Sets of selectors with an identity. More than that are patterns full of stars."""


class FqdnSelectors:
    """Counts who uses which selector; `settle` makes the identities follow."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._users: dict[str, int] = {}
        self._numbers = StableNumbers(FQDN_MIN, LOCAL_MAX)
        self._dirty = False
        self.automaton: FqdnAutomaton = NO_SELECTORS
        self.classes: dict[frozenset[str], int] = {}
        """Set of selectors -> its identity."""

    def acquire(self, selector: str) -> None:
        """Count a user."""
        self._users[selector] = self._users.get(selector, 0) + 1
        self._dirty |= self._users[selector] == 1

    def release(self, selector: str) -> None:
        """Count a user less."""
        self._users[selector] -= 1
        if not self._users[selector]:
            del self._users[selector]
            self._dirty = True

    @property
    def selectors(self) -> frozenset[str]:
        """All that somebody uses."""
        return frozenset(self._users)

    def settle(self) -> bool:
        """Follow what was counted; whether anything is different now."""
        if not self._dirty or self.selectors == frozenset(self.automaton.selectors + self.automaton.left_out):
            self._dirty = False
            return False
        self._dirty = False
        self.automaton = bounded(compile_selectors(self._users))
        wanted = self.automaton.classes()
        for gone in [known for known in self.classes if known not in wanted]:
            self._identities.set_labels(NumericIdentity(self.classes.pop(gone)), None)
            self._numbers.give_back(_text(gone))
        for found in sorted(wanted - self.classes.keys(), key=sorted):
            number = self._numbers.take(_text(found))
            assert number is not None  # a million numbers, a few thousand sets
            self.classes[found] = number
            labels = Labels(Label(SOURCE_FQDN, selector) for selector in sorted(found))
            self._identities.set_labels(NumericIdentity(number), labels)
        return True

    def rules(self) -> tuple[FqdnAutomaton, Mapping[frozenset[str], int]]:
        """What the kernel must know."""
        return self.automaton, dict(self.classes)


def bounded(automaton: FqdnAutomaton) -> FqdnAutomaton:
    """The same with selectors left out, those with most stars first, until the sets are few enough."""
    while len(automaton.classes()) > MAX_CLASSES:
        kept = automaton.selectors[: len(automaton.selectors) // 2]
        fewer = compile_selectors(kept)
        left = tuple(text for text in (*automaton.selectors, *automaton.left_out) if text not in fewer.selectors)
        automaton = FqdnAutomaton(fewer.automaton, fewer.selectors, left)
    return automaton


def _text(selectors: frozenset[str]) -> str:
    return " ".join(sorted(selectors))
