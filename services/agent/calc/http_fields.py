"""A rule set as one automaton over `METHOD SP target`, and behind it, where rules look at fields, over the lines of the
head: `LF name:value LF name:value LF ...`, in any order.

Behind the target stands a *root*: the rules that are still possible. From it each line leads to a *result*, which says
by bits which conditions the line meets and which it speaks about, and back to the root. Both are states whose row holds
numbers in the columns of control characters, which no input has there:

    root    0: conditions that a request without Host meets; 1...: alternatives, each a set of conditions that suffices
    result  0: conditions that the line decides; 1: conditions that it meets; 2: the root

A condition that is decided twice is not met: two values are not the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.agent.abi.http import MAX_ALTERNATIVES, MAX_CONDITIONS
from services.agent.calc.http_dfa import BACK, Budget, Dfa, TooLarge, determinise, split
from services.agent.calc.http_tree import ALPHABET, ASCII, Mask, chars, fold

METHOD_END: Final = chars(" ")
TARGET_END: Final = chars("\n")
ABSOLUTE_END: Final = chars("\r")
"""Behind an absolute target, which names a host itself: rules that look at the Host field are out."""
LINE_END: Final = chars("\n")
IN_LINE: Final = ASCII & ~LINE_END
NAME_END: Final = chars(":")
BLANK: Final = chars(" ")
"""What may stand before a value. Other blanks around it belong to it for some servers, so they meet no condition."""
HOST: Final = "host"


@dataclass(frozen=True, slots=True)
class Field:
    """A condition: the field is there (`value` None) or has exactly this value; of Host, what the automaton says."""

    name: str
    value: str | None = None
    host: Dfa | None = None

    @property
    def decided(self) -> bool:
        """Whether a second line of the name takes it back."""
        return self.value is not None or self.host is not None


@dataclass(frozen=True, slots=True)
class RuleFields:
    """One rule, compiled: all conditions must be met."""

    method: Dfa
    path: Dfa
    fields: tuple[Field, ...] = ()


# States of the whole. What of a line was read: ("name", name, characters), ("alias", name, characters) for one with an
# underscore for a hyphen, ("aliased", name, 0) behind it, ("value", number of the condition, state of its automaton).
_Position = tuple[str, str | int, int]


@dataclass(frozen=True, slots=True)
class _Target:
    positions: frozenset[tuple[int, int, int]]
    """Rule, 0 in the method or 1 in the target, state."""


@dataclass(frozen=True, slots=True)
class _Root:
    rules: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Line:
    root: _Root
    positions: frozenset[_Position]
    """None: a line that nothing asks about."""


@dataclass(frozen=True, slots=True)
class _Result:
    root: _Root
    decided: int
    met: int


_State = _Target | _Root | _Line | _Result


class _Head:
    """What the lines of a head mean to the rules that are still possible."""

    def __init__(self, rules: Sequence[RuleFields], root: _Root) -> None:
        self._root = root
        chosen = [rules[i].fields for i in sorted(root.rules)]
        self.conditions = list(dict.fromkeys(field for fields in chosen for field in fields))
        if len(self.conditions) > MAX_CONDITIONS:
            raise TooLarge(f"look at more than {MAX_CONDITIONS} different headers or values of one path")
        masks = {self._bits(fields) for fields in chosen}
        # What asks for more than another one adds nothing.
        self._alternatives = sorted(m for m in masks if not any(other != m and other & m == other for other in masks))
        if len(self._alternatives) > MAX_ALTERNATIVES:
            raise TooLarge(f"combine headers in more than {MAX_ALTERNATIVES} ways for one path")

    def _bits(self, fields: Iterable[Field]) -> int:
        return sum(1 << self.conditions.index(field) for field in set(fields))

    def note(self) -> tuple[int, ...]:
        """The root's numbers."""
        without_host = [f for f in self.conditions if f.host is not None and 0 in f.host.accepting]
        return (self._bits(without_host), *self._alternatives)

    def begin(self) -> _Line:
        return _Line(self._root, frozenset(("name", field.name, 0) for field in self.conditions))

    def outgoing(self, position: _Position) -> Iterable[tuple[Mask, _Position]]:
        kind, what, at = position
        if isinstance(what, int):
            for mask, target in _value_edges(self.conditions[what], at):
                yield mask, ("value", what, target)
        elif kind == "aliased":
            yield IN_LINE, position
        elif at < len(what):
            yield fold(chars(what[at])), (kind, what, at + 1)
            if what[at] == "-":
                yield chars("_"), ("alias", what, at + 1)
        elif kind == "alias":
            yield NAME_END, ("aliased", what, 0)
        else:
            for i, condition in enumerate(self.conditions):
                if condition.name == what:
                    yield NAME_END, ("value", i, 0)

    def result(self, line: _Line) -> _Result:
        decided = met = 0
        for kind, what, at in line.positions:
            if isinstance(what, int):
                decided |= (1 << what) if self.conditions[what].decided else 0
                met |= (1 << what) if _value_ends(self.conditions[what], at) else 0
            elif kind == "aliased":
                # Gateways that turn names into variables read both as one: as if the field came twice.
                decided |= self._bits(f for f in self.conditions if f.name == what and f.decided)
        return _Result(self._root, decided, met)


def _value_edges(field: Field, at: int) -> Iterable[tuple[Mask, int]]:
    """Of a value's automaton, which never gives up: state -1 is failure, so that the line is still one of its name."""
    edges: Iterable[tuple[Mask, int]] = ((IN_LINE, 0),)
    if field.host is not None:
        edges = field.host.edges[at] if at >= 0 else ()
    elif field.value is not None:
        edges = _exact_edges(field.value, at)
    rest = IN_LINE
    for mask, target in edges:
        yield mask & rest, target
        rest &= ~mask
    if rest:
        yield rest, -1


def _exact_edges(value: str, at: int) -> tuple[tuple[Mask, int], ...]:
    """Blanks, then the value."""
    if not 0 <= at < len(value):
        return ()
    return ((chars(value[at]), at + 1), *(((BLANK, 0),) if at == 0 else ()))


def _value_ends(field: Field, at: int) -> bool:
    if at < 0:
        return False
    return at in field.host.accepting if field.host is not None else field.value is None or at == len(field.value)


class _Builder:
    """Explores the states of a rule set."""

    def __init__(self, rules: Sequence[RuleFields]) -> None:
        self._rules = rules
        self._budget = Budget()
        self._heads: dict[_Root, _Head] = {}

    def _head(self, root: _Root) -> _Head:
        if root not in self._heads:
            self._heads[root] = _Head(self._rules, root)
        return self._heads[root]

    def step(self, state: _State) -> Iterable[tuple[Mask, _State]]:
        match state:
            case _Target():
                yield from self._in_target(state)
            case _Root():
                for mask, line in self._in_line(self._head(state).begin()):
                    yield mask & ALPHABET, line
            case _Line():
                yield from self._in_line(state)
                yield LINE_END, self._head(state.root).result(state)
            case _Result():
                yield BACK, state.root

    def _in_target(self, state: _Target) -> Iterable[tuple[Mask, _State]]:
        edges: list[tuple[Mask, tuple[int, int, int]]] = []
        reached: list[int] = []
        for rule, part, number in sorted(state.positions):
            dfa = self._rules[rule].path if part else self._rules[rule].method
            edges.extend((mask, (rule, part, target)) for mask, target in dfa.edges[number])
            if number in dfa.accepting:
                if part:
                    reached.append(rule)
                else:
                    edges.append((METHOD_END, (rule, 1, 0)))
        self._budget.spend(len(edges))
        for mask, positions in split(edges):
            yield mask, _Target(positions)
        if self.accepts(state) or not reached:
            return
        yield TARGET_END, _Root(frozenset(reached))
        hostless = [rule for rule in reached if all(field.name != HOST for field in self._rules[rule].fields)]
        if hostless:
            yield ABSOLUTE_END, _Root(frozenset(hostless))

    def _in_line(self, line: _Line) -> Iterable[tuple[Mask, _State]]:
        head = self._head(line.root)
        edges = [edge for position in sorted(line.positions, key=repr) for edge in head.outgoing(position)]
        self._budget.spend(len(edges) + 1)
        rest = IN_LINE
        for mask, positions in split(edges):
            yield mask, _Line(line.root, positions)
            rest &= ~mask
        if rest:
            yield rest, _Line(line.root, frozenset())

    def accepts(self, state: _State) -> bool:
        return isinstance(state, _Target) and any(
            part and number in self._rules[rule].path.accepting and not self._rules[rule].fields
            for rule, part, number in state.positions
        )

    def note(self, state: _State) -> tuple[int, ...]:
        if isinstance(state, _Result):
            return (state.decided, state.met)
        return self._head(state).note() if isinstance(state, _Root) else ()


def ruleset_dfa(rules: Sequence[RuleFields], limit: int) -> Dfa:
    """The automaton of rules of which any may allow; raises TooLarge."""
    builder = _Builder(rules)
    start: _State = _Target(frozenset((rule, 0, 0) for rule in range(len(rules))))
    order, dfa = determinise(start, builder.step, limit)
    notes = tuple((number, note) for number, state in enumerate(order) if (note := builder.note(state)))
    return Dfa(dfa.edges, frozenset(n for n, state in enumerate(order) if builder.accepts(state)), notes)
