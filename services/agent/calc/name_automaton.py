"""From patterns of names to one deterministic automaton over columns of characters. Pure, bounded in size and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.agent.abi.names import DOT_COLUMN, LETTERS

Token = tuple[str, tuple[int, ...]]
MAX_WORK = 800_000
"""Edges looked at while one automaton is built: a fraction of a second."""


class TooLarge(ValueError):
    """The automaton does not fit its bound."""


@dataclass(frozen=True, slots=True)
class Automaton:
    """State 0 is the start; a column without an edge ends in failure. `outputs`: the patterns that match in a state."""

    edges: tuple[dict[int, int], ...]
    outputs: tuple[frozenset[int], ...]

    def output(self, name: str) -> frozenset[int]:
        """The patterns that a whole name matches."""
        state = 0
        for char in name:
            following = self.edges[state].get(LETTERS.find(char) + 1)
            if following is None:
                return frozenset()
            state = following
        return self.outputs[state]


class _Nfa:
    """Positions in all patterns; every position has edges by column, and positions that it also is."""

    def __init__(self, patterns: Sequence[Sequence[Token]]) -> None:
        self.edges: list[list[tuple[tuple[int, ...], int]]] = []
        self.also: list[int] = []
        self.ends: dict[int, int] = {}
        self.starts = [self._add(number, tokens) for number, tokens in enumerate(patterns)]

    def _position(self) -> int:
        self.edges.append([])
        self.also.append(-1)
        return len(self.edges) - 1

    def _add(self, number: int, tokens: Sequence[Token]) -> int:
        first = at = self._position()
        for kind, columns in tokens:
            following = self._position()
            if kind == "one":
                self.edges[at].append((columns, following))
            elif kind == "star":
                self.edges[at].append((columns, at))
                self.also[at] = following
            else:
                inside = self._position()
                self.edges[at].append((columns, inside))
                self.edges[inside] += [(columns, inside), ((DOT_COLUMN,), following)]
                # Another label may follow: behind the dot both the rest and a label can come.
                again = self._position()
                self.edges[again].append((columns, inside))
                self.also[following] = again
                at, following = following, self._position()
                # `also` holds one position: the rest begins in a position of its own.
                self.also[again] = following
            at = following
        self.ends[at] = number
        return first

    def closure(self, positions: set[int]) -> frozenset[int]:
        """With all that they also are."""
        found = set(positions)
        for position in positions:
            more = self.also[position]
            while more >= 0 and more not in found:
                found.add(more)
                more = self.also[more]
        return frozenset(found)


def determine(patterns: Sequence[Sequence[Token]], room: int, *, merge: bool = False) -> Automaton:
    """The automaton of all patterns side by side; with `merge` it only says whether any matches. Raises `TooLarge`."""
    nfa = _Nfa(patterns)
    first = nfa.closure(set(nfa.starts))
    numbers = {first: 0}
    order = [first]
    edges: list[dict[int, int]] = []
    work = 0
    for positions in order:
        reached: dict[int, set[int]] = {}
        for position in positions:
            for columns, target in nfa.edges[position]:
                work += len(columns)
                for column in columns:
                    reached.setdefault(column, set()).add(target)
        if work > MAX_WORK:
            raise TooLarge("takes too long")
        row: dict[int, int] = {}
        known: dict[frozenset[int], int] = {}
        for column, targets in reached.items():
            plain = frozenset(targets)
            number = known.get(plain)
            if number is None:
                closed = nfa.closure(targets)
                number = numbers.get(closed)
                if number is None:
                    number = numbers[closed] = len(order)
                    order.append(closed)
                known[plain] = number
            row[column] = number
        edges.append(row)
        if not merge and len(order) > room:
            raise TooLarge(f"needs more than {room} states")
    outputs = [frozenset(nfa.ends[p] for p in positions if p in nfa.ends) for positions in order]
    if merge:
        edges, outputs = _merged(edges, [frozenset({0}) if output else output for output in outputs])
        if len(outputs) > room:
            raise TooLarge(f"needs {len(outputs)} states, {room} are left")
    return Automaton(tuple(edges), tuple(outputs))


def _merged(
    edges: list[dict[int, int]], outputs: list[frozenset[int]]
) -> tuple[list[dict[int, int]], list[frozenset[int]]]:
    """The same with states joined that nothing tells apart (Moore: refine until nothing changes). Start stays first."""
    classes = [1 if output else 0 for output in outputs]
    count = len(set(classes))
    while True:
        signatures: dict[tuple[int, frozenset[tuple[int, int]]], int] = {}
        following = [
            signatures.setdefault(
                (classes[state], frozenset((column, classes[target]) for column, target in row.items())),
                len(signatures),
            )
            for state, row in enumerate(edges)
        ]
        classes = following
        if len(signatures) == count:
            break
        count = len(signatures)
    chosen: dict[int, int] = {}
    for state, group in enumerate(classes):
        chosen.setdefault(group, state)
    # Groups are numbered in the order of their first states: the start's is 0.
    return (
        [{column: classes[target] for column, target in edges[state].items()} for state in chosen.values()],
        [outputs[state] for state in chosen.values()],
    )
