"""Whether an HTTP request meets a rule, by the same automata as the kernel's tables: linear in the request's length.

Used to explain verdicts and to replay recorded requests; both rules and requests may be hostile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from services.agent.abi.http import MAX_STATES
from services.agent.calc.http import check_rule
from services.agent.calc.http_dfa import Dfa, TooLarge, pattern_dfa
from services.agent.calc.http_regex import RegexError, parse
from services.policy.l7 import HeaderMatch, HttpRule, Request


def meets(rule: HttpRule, request: Request) -> bool:
    """Every given field matches as a whole; what the datapath cannot compile allows nothing."""
    if check_rule(rule) is not None:
        return False
    fields = ((rule.method, request.method), (rule.path, request.path), (rule.host, request.host))
    if not all(_matches(pattern, text) for pattern, text in fields if pattern):
        return False
    sent = [(name.lower(), value) for name, value in request.headers]
    if request.host:
        sent.append(("host", request.host))
    return all(_carries(header, sent) for header in rule.headers)


def _carries(header: HeaderMatch, sent: Sequence[tuple[str, str]]) -> bool:
    """As `calc/http_fields.py` says: a value must come exactly once, under no name that gateways take for the same."""
    name = header.name.lower()
    values = [value.lstrip(" ") for other, value in sent if other == name]
    if header.value is None or not values:
        return bool(values)
    return values == [header.value] and not any(_is_alias(other, name) for other, _ in sent)


def _is_alias(other: str, name: str) -> bool:
    """Whether a name has underscores for some of the hyphens of another one."""
    if other == name or len(other) != len(name):
        return False
    return all(a == b or (a, b) == ("_", "-") for a, b in zip(other, name, strict=True))


def _matches(pattern: str, text: str) -> bool:
    automaton = _automaton(pattern)
    return automaton is not None and automaton.matches(text)


@lru_cache(maxsize=512)
def _automaton(pattern: str) -> Dfa | None:
    try:
        return pattern_dfa(parse(pattern), MAX_STATES)
    except (RegexError, TooLarge):
        return None
