"""Whether an HTTP request meets a rule, by the same automata as the kernel's tables: linear in the request's length.

Used to explain verdicts and to replay recorded requests; both rules and requests may be hostile.
"""

from __future__ import annotations

from functools import lru_cache

from services.agent.abi.http import MAX_STATES
from services.agent.calc.http_dfa import Dfa, TooLarge, pattern_dfa
from services.agent.calc.http_regex import RegexError, parse
from services.policy.l7 import HttpRule, Request


def meets(rule: HttpRule, request: Request) -> bool:
    """Every given field matches as a whole; what the datapath cannot compile allows nothing, and
    of recorded requests the headers are not known."""
    if rule.headers:
        return False
    fields = ((rule.method, request.method), (rule.path, request.path), (rule.host, request.host))
    return all(_matches(pattern, text) for pattern, text in fields if pattern)


def _matches(pattern: str, text: str) -> bool:
    automaton = _automaton(pattern)
    return automaton is not None and automaton.matches(text)


@lru_cache(maxsize=512)
def _automaton(pattern: str) -> Dfa | None:
    try:
        return pattern_dfa(parse(pattern), MAX_STATES)
    except (RegexError, TooLarge):
        return None
