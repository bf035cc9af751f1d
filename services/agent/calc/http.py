"""HTTP rule sets -> the tables that the kernel walks (`bpf/lib/http_tables.h`). Pure; a bad rule never allows.

    rules of a set --patterns--> one minimal DFA per set --concatenated--> rows of 128 next states + a start per set

Rules only allow, and any of a set may: a rule that cannot be compiled is left out and reported, which is the closed
way to fail. What does not fit the table is likewise reported here, before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

import numpy as np

from services.agent.abi.http import (
    ACCEPT,
    ALLOW_ALL,
    COLUMNS,
    DENY_ALL,
    FIRST_STATE,
    MAX_RULESETS,
    MAX_STATES,
    RESULT_ROOT,
    VISIBLE,
)
from services.agent.calc.http_dfa import BACK, Dfa, TooLarge, minimise, pattern_dfa
from services.agent.calc.http_fields import HOST, Field, RuleFields, ruleset_dfa
from services.agent.calc.http_regex import RegexError, parse
from services.agent.calc.http_tree import ALPHABET, chars

ANYTHING: Final = ".*"


class HttpRule(Protocol):
    """What of a policy's HTTP rule is looked at; None: any."""

    @property
    def method(self) -> str | None: ...
    @property
    def path(self) -> str | None: ...
    @property
    def host(self) -> str | None: ...
    @property
    def headers(self) -> Sequence[Header]: ...


class Header(Protocol):
    """A header that must be there, with exactly that value if one is given."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class HttpTables:
    """One generation. `starts[id]` is the state in which a request under rule set `id` begins; 0 refuses everything."""

    starts: np.ndarray[tuple[int], np.dtype[np.uint16]]
    rows: np.ndarray[tuple[int, int], np.dtype[np.uint16]]
    errors: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Rule set -> what is wrong with it; what could not be compiled allows nothing."""

    @property
    def states(self) -> int:
        """Used rows, of `MAX_STATES`."""
        return len(self.rows)


def compile_rulesets(rulesets: Mapping[int, Sequence[HttpRule]]) -> HttpTables:
    """Build the tables of all rule sets (ids 1..`MAX_RULESETS`-1). Never raises for what people write in policies."""
    starts = np.zeros(MAX_RULESETS, np.uint16)
    # No rule set: a connection that is followed while no HTTP policy holds, or only watched.
    starts[[0, VISIBLE]] = ALLOW_ALL
    fixed = np.zeros((FIRST_STATE, COLUMNS), np.uint16)
    fixed[DENY_ALL] = DENY_ALL
    fixed[ALLOW_ALL] = ALLOW_ALL | ACCEPT
    blocks = [fixed]
    errors: dict[int, tuple[str, ...]] = {}
    placed: dict[Dfa, int] = {}
    used = FIRST_STATE
    for number, rules in sorted(rulesets.items()):
        if not 0 < number < VISIBLE:
            errors[number] = (f"HTTP rule set {number}: a node holds {VISIBLE - 1} distinct HTTP rule sets",)
            continue
        dfa, messages = _compile_set(tuple(_fields(rule) for rule in rules))
        if dfa is not None and dfa not in placed:
            if used + len(dfa.edges) > MAX_STATES:
                room = f"needs {len(dfa.edges)} states, {MAX_STATES - used} of {MAX_STATES} are left"
                messages += (f"HTTP rule set {number} {room}: fewer distinct HTTP rules on one node",)
                dfa = None
            else:
                blocks.append(_rows(dfa, used))
                placed[dfa] = used
                used += len(dfa.edges)
        if dfa is not None:
            starts[number] = placed[dfa]
        if messages:
            errors[number] = messages
    return HttpTables(starts, np.concatenate(blocks), errors)


def check_rule(rule: HttpRule) -> str | None:
    """What is wrong with a rule, naming the field; None: nothing."""
    return _compile_rule(_fields(rule))[1]


_Fields = tuple[str, str, str | None, tuple[tuple[str, str | None], ...]]
NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")


def _fields(rule: HttpRule) -> _Fields:
    """A rule by value: (method, path, host or None, headers). Empty means any, as in the policy language."""
    headers = tuple((header.name.lower(), header.value) for header in rule.headers)
    return rule.method or ANYTHING, rule.path or ANYTHING, rule.host or None, headers


@lru_cache(maxsize=4096)
def _compile_pattern(pattern: str) -> Dfa:
    return minimise(pattern_dfa(parse(pattern), MAX_STATES))


@lru_cache(maxsize=4096)
def _compile_rule(fields: _Fields) -> tuple[RuleFields | None, str | None]:
    method, path, host, headers = fields
    for header, value in headers:
        wrong = _check_header(header, value)
        if wrong:
            return None, f"rules.http[].headers {header!r}: {wrong}"
    compiled: list[Dfa] = []
    for name, pattern in (("method", method), ("path", path), ("host", host)):
        if pattern is None:
            continue
        try:
            compiled.append(_compile_pattern(pattern))
        except (RegexError, TooLarge) as error:
            return None, f"rules.http[].{name} {pattern!r}: {error}"
    conditions = [Field(name, value) for name, value in headers]
    if host is not None:
        conditions.append(Field(HOST, host=compiled[2]))
    return RuleFields(compiled[0], compiled[1], tuple(dict.fromkeys(conditions))), None


def _check_header(name: str, value: str | None) -> str | None:
    """What makes a header match impossible; None: nothing."""
    if not NAME.fullmatch(name):
        return "no request can have a header of that name"
    if value is not None and (not value or value != value.strip(" \t")):
        return "blanks around a value are not part of it; the rule would never match"
    if value is not None and not all(ord(char) < 128 and chars(char) & (ALPHABET | chars(" \t")) for char in value):
        return f"the value {value!r} is not printable ASCII, which is all that is compared"
    return None


@lru_cache(maxsize=2048)
def _compile_set(rules: tuple[_Fields, ...]) -> tuple[Dfa | None, tuple[str, ...]]:
    compiled = [_compile_rule(rule) for rule in rules]
    messages = tuple(message for _, message in compiled if message)
    good = tuple(dict.fromkeys(rule for rule, _ in compiled if rule is not None))
    if not good:
        return None, messages
    try:
        return minimise(ruleset_dfa(good, MAX_STATES)), messages
    except TooLarge as error:
        return None, (*messages, f"rules.http: the rules of one set together: {error}")


def _rows(dfa: Dfa, offset: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    rows = np.zeros((len(dfa.edges), COLUMNS), np.uint16)
    for state, edges in enumerate(dfa.edges):
        for mask, target in edges:
            column = RESULT_ROOT if mask == BACK else _columns(mask)
            rows[state, column] = (offset + target) | (ACCEPT if target in dfa.accepting else 0)
    for state, note in dfa.notes:
        rows[state, : len(note)] = note
    return rows


@lru_cache(maxsize=4096)
def _columns(mask: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    raw = np.frombuffer(mask.to_bytes(COLUMNS // 8, "little"), np.uint8)
    return np.unpackbits(raw, bitorder="little").astype(bool)
