"""Finite automata over ASCII: syntax tree -> NFA -> DFA of one pattern; `http_fields` makes rule sets of them.

A pattern becomes its own small DFA, so that anchors mean the ends of that field. Sizes are bounded while building:
`TooLarge` says so before memory does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from services.agent.calc.http_tree import ALPHABET, Alternate, Anchor, Chars, Concat, Mask, Node, Repeat

BACK: Final = 1 << 128
"""No character: the edge from the end of a line to where the next one begins (`http_fields`)."""
MAX_NFA_STATES = 20_000
MAX_WORK = 1_000_000
"""Edges looked at while one automaton is built: about a second. Patterns in use need a few thousand."""


class TooLarge(ValueError):
    """The automaton does not fit its bound."""


class Budget:
    """Ends a construction that would take too long, whatever it is that grows."""

    def __init__(self) -> None:
        self._left = MAX_WORK

    def spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise TooLarge("is too complex: fewer alternatives behind `.*`, or smaller repetitions")


@dataclass(frozen=True, slots=True)
class Dfa:
    """State 0 is the start. A character without an edge ends in failure; the edges of a state do not overlap."""

    edges: tuple[tuple[tuple[Mask, int], ...], ...]
    accepting: frozenset[int]
    notes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Numbers that some states carry."""

    def matches(self, text: str) -> bool:
        """Full match, one character after the other: the definition that the tables are tested against."""
        state = 0
        for char in text:
            bit = 1 << ord(char)
            following = next((target for mask, target in self.edges[state] if mask & bit), None)
            if following is None:
                return False
            state = following
        return state in self.accepting


class _Nfa:
    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.edges: list[list[tuple[Mask, int]]] = []
        self.empty: list[list[int]] = []
        self.at_begin: list[list[int]] = []
        self.at_end: list[list[int]] = []

    def state(self) -> int:
        if len(self.edges) >= MAX_NFA_STATES:
            raise TooLarge(f"unrolls to more than {MAX_NFA_STATES} states: fewer or smaller repetitions")
        for column in (self.edges, self.empty, self.at_begin, self.at_end):
            column.append([])
        return len(self.edges) - 1

    def build(self, node: Node, start: int) -> int:
        """Add `node` behind `start`; returns the state behind it."""
        match node:
            case Chars(mask):
                end = self.state()
                if mask & ALPHABET:
                    self.edges[start].append((mask & ALPHABET, end))
            case Concat(parts):
                end = start
                for part in parts:
                    end = self.build(part, end)
            case Alternate(parts):
                end = self.state()
                for part in parts:
                    first = self.state()
                    self.empty[start].append(first)
                    self.empty[self.build(part, first)].append(end)
            case Repeat():
                end = self._repeat(node, start)
            case Anchor(at_end):
                end = self.state()
                (self.at_end if at_end else self.at_begin)[start].append(end)
        return end

    def _repeat(self, node: Repeat, start: int) -> int:
        for _ in range(node.least):
            start = self.build(node.part, start)
        end = self.state()
        if node.most is None:
            loop = self.state()
            self.empty[start].append(loop)
            self.empty[self.build(node.part, loop)].append(loop)
            self.empty[loop].append(end)
            return end
        for _ in range(node.most - node.least):
            self.empty[start].append(end)
            start = self.build(node.part, start)
        self.empty[start].append(end)
        return end

    def closure(self, states: Iterable[int], begin: bool, end: bool) -> frozenset[int]:
        """All that is reached without a character: at the beginning of the text, at its end, or inside."""
        seen = set(states)
        todo = list(seen)
        while todo:
            state = todo.pop()
            self._budget.spend(1 + len(self.empty[state]))
            reached = [*self.empty[state]]
            if begin:
                reached += self.at_begin[state]
            if end:
                reached += self.at_end[state]
            for following in reached:
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
        return frozenset(seen)


S = TypeVar("S", bound=Hashable)


def split(edges: Iterable[tuple[Mask, S]]) -> list[tuple[Mask, frozenset[S]]]:
    """Overlapping edges -> disjoint masks, each with all targets that it leads to."""
    atoms: list[tuple[Mask, frozenset[S]]] = []
    for edge_mask, target in edges:
        rest = edge_mask
        refined: list[tuple[Mask, frozenset[S]]] = []
        for mask, targets in atoms:
            both = mask & rest
            if both:
                refined.append((both, targets | {target}))
                rest &= ~both
            if mask & ~both:
                refined.append((mask & ~both, targets))
        if rest:
            refined.append((rest, frozenset((target,))))
        atoms = refined
    return atoms


def determinise(start: S, step: Callable[[S], Iterable[tuple[Mask, S]]], limit: int) -> tuple[list[S], Dfa]:
    """Explore from `start`; `step` gives a state's disjoint edges. The DFA accepts nothing yet. Raises TooLarge."""
    numbers = {start: 0}
    order = [start]
    edges: list[tuple[tuple[Mask, int], ...]] = []
    for state in order:  # grows while we go
        merged: dict[int, Mask] = {}
        for mask, target in step(state):
            if target not in numbers:
                if len(order) >= limit:
                    raise TooLarge(f"needs more than {limit} states")
                numbers[target] = len(order)
                order.append(target)
            merged[numbers[target]] = merged.get(numbers[target], 0) | mask
        edges.append(tuple((mask, target) for target, mask in merged.items()))
    return order, Dfa(tuple(edges), frozenset())


def pattern_dfa(node: Node, limit: int) -> Dfa:
    """The DFA of one field's pattern; raises TooLarge."""
    budget = Budget()
    nfa = _Nfa(budget)
    first = nfa.state()
    final = nfa.build(node, first)

    def step(state: tuple[bool, frozenset[int]]) -> Iterable[tuple[Mask, tuple[bool, frozenset[int]]]]:
        outgoing = [edge for member in state[1] for edge in nfa.edges[member]]
        budget.spend(len(outgoing))
        for mask, targets in split(outgoing):
            yield mask, (False, nfa.closure(targets, begin=False, end=False))

    order, dfa = determinise((True, nfa.closure((first,), begin=True, end=False)), step, limit)
    accepting = frozenset(
        number for number, (begin, members) in enumerate(order) if final in nfa.closure(members, begin, end=True)
    )
    return Dfa(dfa.edges, accepting)


def minimise(dfa: Dfa) -> Dfa:
    """The smallest DFA of the same language (Moore): states stay together while nothing tells them apart.

    It takes as many rounds as the longest text that tells two states apart; a DFA for which that would take too long
    (thousands of states in a row) is returned as it is, which is right, if not smallest.
    """
    left = MAX_WORK
    size = sum(len(edges) for edges in dfa.edges)
    notes = dict(dfa.notes)
    kinds: dict[Hashable, int] = {}
    block = [
        kinds.setdefault((state in dfa.accepting, notes.get(state)), len(kinds)) for state in range(len(dfa.edges))
    ]
    count = 0
    while True:
        left -= size
        if left < 0:
            return dfa
        signatures: dict[Hashable, int] = {}
        following = []
        for state, edges in enumerate(dfa.edges):
            merged: dict[int, Mask] = {}
            for mask, target in edges:
                merged[block[target]] = merged.get(block[target], 0) | mask
            following.append(signatures.setdefault((block[state], frozenset(merged.items())), len(signatures)))
        block = following
        if len(signatures) == count:
            break
        count = len(signatures)
    edges_of: list[tuple[tuple[Mask, int], ...]] = [()] * count
    for state, edges in enumerate(dfa.edges):
        merged = {}
        for mask, target in edges:
            merged[block[target]] = merged.get(block[target], 0) | mask
        edges_of[block[state]] = tuple((mask, target) for target, mask in merged.items())
    noted = tuple(sorted({(block[state], note) for state, note in dfa.notes}))
    return Dfa(tuple(edges_of), frozenset(block[state] for state in dfa.accepting), noted)
