"""HTTP rule sets -> the tables that the kernel walks (`bpf/lib/http_tables.h`). Pure; a bad rule never allows.

    rules of a set --patterns--> one minimal DFA per set --concatenated--> rows of 128 next states + a start per set

Rules only allow, and any of a set may: a rule that cannot be compiled is left out and reported, which is the closed
way to fail. What does not fit the table is likewise reported here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

import numpy as np

from services.agent.abi.http import ACCEPT, ALLOW_ALL, COLUMNS, DENY_ALL, FIRST_STATE, MAX_RULESETS, MAX_STATES
from services.agent.calc.http_dfa import Dfa, RuleFields, TooLarge, minimise, pattern_dfa, ruleset_dfa
from services.agent.calc.http_regex import RegexError, parse

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
    def headers(self) -> Sequence[object]: ...


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
    starts[0] = ALLOW_ALL  # no rule set: a connection that is followed while no HTTP policy holds
    fixed = np.zeros((FIRST_STATE, COLUMNS), np.uint16)
    fixed[DENY_ALL] = DENY_ALL
    fixed[ALLOW_ALL] = ALLOW_ALL | ACCEPT
    blocks = [fixed]
    errors: dict[int, tuple[str, ...]] = {}
    placed: dict[Dfa, int] = {}
    used = FIRST_STATE
    for number, rules in sorted(rulesets.items()):
        if not 0 < number < MAX_RULESETS:
            errors[number] = (f"HTTP rule set {number}: a node holds {MAX_RULESETS - 1} distinct HTTP rule sets",)
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


_Fields = tuple[str, str, str | None, bool]


def _fields(rule: HttpRule) -> _Fields:
    """A rule by value: (method, path, host or None, has headers). Empty means any, as in the policy language."""
    return rule.method or ANYTHING, rule.path or ANYTHING, rule.host or None, bool(rule.headers)


@lru_cache(maxsize=4096)
def _compile_pattern(pattern: str) -> Dfa:
    return minimise(pattern_dfa(parse(pattern), MAX_STATES))


@lru_cache(maxsize=4096)
def _compile_rule(fields: _Fields) -> tuple[RuleFields | None, str | None]:
    method, path, host, headers = fields
    if headers:
        return None, "rules.http[].headers: header matches are not enforced yet; the rule allows nothing"
    compiled: list[Dfa] = []
    for name, pattern in (("method", method), ("path", path), ("host", host)):
        if pattern is None:
            continue
        try:
            compiled.append(_compile_pattern(pattern))
        except (RegexError, TooLarge) as error:
            return None, f"rules.http[].{name} {pattern!r}: {error}"
    return RuleFields(compiled[0], compiled[1], compiled[2] if host is not None else None), None


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
            rows[state, _columns(mask)] = (offset + target) | (ACCEPT if target in dfa.accepting else 0)
    return rows


@lru_cache(maxsize=4096)
def _columns(mask: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    raw = np.frombuffer(mask.to_bytes(COLUMNS // 8, "little"), np.uint8)
    return np.unpackbits(raw, bitorder="little").astype(bool)
