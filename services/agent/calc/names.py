"""Patterns of host names -> automata that the kernel walks (`bpf/lib/names.h`). Pure; what does not fit allows none.

    rules.dns, serverNames: one automaton per rule set, which accepts or not
    toFQDNs: one for all selectors of the node, whose states say which of them match

Names are lower-case with a final dot, patterns likewise (policy-semantics 6.1): `*` is any run of `[-a-z0-9_]`, `**.`
in front is one or more whole labels, stars alone are every name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from services.agent.abi.names import (
    ACCEPT,
    COLUMNS,
    DEAD,
    EVERYTHING,
    FIRST_STATE,
    LETTERS,
    MAX_RULESETS,
    MAX_STATES,
)
from services.agent.calc.name_automaton import Automaton, TooLarge, determine

Rows = np.ndarray[tuple[int, int], np.dtype[np.uint16]]
Patterns = frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class FqdnAutomaton:
    """All toFQDNs selectors of the node. `left_out`: those that do not fit, and select nothing."""

    automaton: Automaton
    selectors: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def classes(self) -> frozenset[frozenset[str]]:
        """Every set of selectors that some name matches, apart from none."""
        outputs = {frozenset(self.selectors[at] for at in output) for output in self.automaton.outputs}
        return frozenset(outputs - {frozenset()})

    def matching(self, name: str) -> frozenset[str]:
        """The selectors that a canonical name matches."""
        return frozenset(self.selectors[at] for at in self.automaton.output(name))


@dataclass(frozen=True, slots=True, eq=False)
class NameTable:
    """One generation of the kernel's table."""

    starts: np.ndarray[tuple[int], np.dtype[np.uint16]]
    identities: np.ndarray[tuple[int], np.dtype[np.uint32]]
    rows: Rows
    errors: tuple[str, ...] = field(default=())
    """What does not fit, for people; it allows nothing."""


def canonical(text: str) -> str:
    """A name or pattern as it is compared: lower case, with a final dot."""
    return text.lower().rstrip(".") + "."


def is_everything(pattern: str) -> bool:
    """Whether a pattern stands for every name."""
    return set(pattern.rstrip(".")) == {"*"}


@lru_cache(maxsize=4096)
def expression(pattern: str) -> re.Pattern[str]:
    """What a pattern means, as a regular expression over canonical names: the definition that the tables are tested
    against."""
    if is_everything(pattern):
        return re.compile(r".*", re.DOTALL)
    text, head = canonical(pattern), ""
    prefix = re.match(r"\*\*+\.", text)
    if prefix:
        head, text = r"(?:[-a-z0-9_]+\.)+", text[prefix.end() :]
    body = "".join("[-a-z0-9_]*" if part.startswith("*") else re.escape(part) for part in re.split(r"(\*+)", text))
    return re.compile(head + body)


def matches(pattern: str, name: str) -> bool:
    """Whether a canonical name is one of a pattern's."""
    return expression(pattern).fullmatch(name) is not None


def compile_selectors(selectors: Iterable[str], room: int = MAX_STATES // 2) -> FqdnAutomaton:
    """The automaton of toFQDNs selectors. Those with many stars are left out first where it would be too large."""
    ordered = sorted(set(selectors), key=lambda text: (text.count("*"), text))
    low, high = 0, len(ordered)
    kept = high
    while True:
        try:
            automaton = determine([_tokens(text) for text in ordered[:kept]], room)
        except TooLarge:
            high = kept
            kept = (low + high) // 2
            continue
        if kept == len(ordered) or high - kept <= 1:
            return FqdnAutomaton(automaton, tuple(ordered[:kept]), tuple(ordered[kept:]))
        low = kept
        kept = (low + high + 1) // 2


NO_SELECTORS = compile_selectors(())


def compile_table(
    rulesets: Mapping[int, Patterns], fqdn: FqdnAutomaton, identities: Mapping[frozenset[str], int]
) -> NameTable:
    """One generation: the selectors' automaton first, then the rule sets' as far as they fit."""
    starts = np.zeros(MAX_RULESETS, np.uint16)
    fixed = np.zeros((FIRST_STATE, COLUMNS), np.uint16)
    fixed[DEAD] = DEAD
    fixed[EVERYTHING] = EVERYTHING | ACCEPT
    blocks: list[Rows] = [fixed, _rows(fqdn.automaton, FIRST_STATE)]
    starts[0] = FIRST_STATE
    numbers = np.zeros(MAX_STATES, np.uint32)
    for state, output in enumerate(fqdn.automaton.outputs):
        if output:
            numbers[FIRST_STATE + state] = identities[frozenset(fqdn.selectors[at] for at in output)]
    used = FIRST_STATE + len(fqdn.automaton.outputs)
    errors = [f"toFQDNs {text!r}: does not fit the table of names, selects nothing" for text in fqdn.left_out]
    placed: dict[Patterns, int] = {}
    for number, patterns in sorted(rulesets.items()):
        if any(is_everything(text) for text in patterns):
            starts[number] = EVERYTHING
            continue
        if patterns not in placed:
            try:
                automaton = _compile_set(patterns, MAX_STATES - used)
            except TooLarge:
                errors.append(f"rule set {number} ({_sample(patterns)}): does not fit the table of names, allows none")
                continue
            blocks.append(_rows(automaton, used))
            placed[patterns] = used
            used += len(automaton.outputs)
        starts[number] = placed[patterns]
    return NameTable(starts, numbers, np.concatenate(blocks), tuple(errors))


@lru_cache(maxsize=512)
def _compile_set(patterns: Patterns, room: int) -> Automaton:
    return determine([_tokens(text) for text in sorted(patterns)], room, merge=True)


def _sample(patterns: Patterns) -> str:
    some = sorted(patterns)
    return f"{some[0]} and {len(some) - 1} more" if len(some) > 1 else some[0]


def _rows(automaton: Automaton, offset: int) -> Rows:
    rows = np.zeros((len(automaton.outputs), COLUMNS), np.uint16)
    for state, edges in enumerate(automaton.edges):
        for column, target in edges.items():
            rows[state, column] = (offset + target) | (ACCEPT if automaton.outputs[target] else 0)
    return rows


_LABEL: tuple[int, ...] = tuple(column + 1 for column, letter in enumerate(LETTERS) if letter != ".")
_ANY: tuple[int, ...] = tuple(range(COLUMNS))


def _tokens(pattern: str) -> Sequence[tuple[str, tuple[int, ...]]]:
    """("one", columns) a character; ("star", columns) any run of them; ("labels", ...) one or more whole labels."""
    if is_everything(pattern):
        return [("star", _ANY)]
    text = canonical(pattern)
    found: list[tuple[str, tuple[int, ...]]] = []
    prefix = re.match(r"\*\*+\.", text)
    if prefix:
        found.append(("labels", _LABEL))
        text = text[prefix.end() :]
    for part in re.findall(r"\*+|[^*]", text):
        if part[0] == "*":
            found.append(("star", _LABEL))
        else:
            column = LETTERS.find(part)
            found.append(("one", (column + 1,) if column >= 0 else ()))
    return found
