"""Rule sets -> tables: what the kernel would decide, walked by hand; what is wrong is reported and allows nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.abi.http import ACCEPT, MAX_RULESETS, MAX_STATES
from services.agent.calc import http_grammar
from services.agent.calc.http import HttpTables, check_rule, compile_rulesets
from services.policy.l7 import HeaderMatch, HttpRule
from tests.datapath.http_model import Rule, allow_by


def decide(tables: HttpTables, ruleset: int, method: str, path: str, host: str = "") -> bool:
    """The kernel's walk over `METHOD SP path [LF host]`."""
    state = int(tables.starts[ruleset])

    def feed(text: str) -> None:
        nonlocal state
        for char in text:
            state = int(tables.rows[state & ~ACCEPT, ord(char)])

    feed(f"{method} {path}")
    if state & ACCEPT:
        return True
    feed(f"\n{host}")
    return bool(state & ACCEPT)


METHODS = st.sampled_from([None, "GET", "GET|HEAD", "P.*", "[A-Z]+"])
PATHS = st.sampled_from([None, "/", "/a", "/a/.*", "/(a|b)/[0-9]+", "/a.*b", ".*", "/.{2,3}"])
HOSTS = st.sampled_from([None, "x", "x[.]y", ".*[.]z"])
RULESETS = st.lists(st.lists(st.builds(Rule, METHODS, PATHS, HOSTS), max_size=4), min_size=1, max_size=5)
REQUESTS = st.tuples(
    st.sampled_from(["GET", "HEAD", "POST", "PUT"]),
    st.sampled_from(["/", "/a", "/a/", "/a/1", "/b/22", "/ab", "/aab", "*", "/a/b?c"]),
    st.sampled_from(["x", "x.y", "a.z", ""]),
)


@given(RULESETS, st.lists(REQUESTS, min_size=1, max_size=10))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_tables_decide_as_the_rules_mean(rulesets: list[list[Rule]], requests: list[tuple[str, str, str]]) -> None:
    tables = compile_rulesets(dict(enumerate(rulesets, start=1)))
    assert not tables.errors
    for number, rules in enumerate(rulesets, start=1):
        allow = allow_by(*rules)
        for method, path, host in requests:
            assert decide(tables, number, method, path, host) == allow(method, path, host), (rules, method, path, host)


def test_fixed_states() -> None:
    tables = compile_rulesets({1: ()})
    assert decide(tables, 0, "ANY", "/thing")
    assert not decide(tables, 1, "GET", "/")  # a set without rules
    assert not decide(tables, 2, "GET", "/")  # a set that nobody wrote
    assert tables.states == 2


def test_equal_languages_share_their_states() -> None:
    one = compile_rulesets({1: (Rule("GET", "/a+"),)})
    both = compile_rulesets({1: (Rule("GET", "/a+"),), 2: (Rule("GET", "/aa*"),)})
    assert one.states == both.states
    assert both.starts[1] == both.starts[2]


def test_a_broken_rule_is_left_out_and_named() -> None:
    tables = compile_rulesets({3: (Rule("GET", "/(?=x)"), Rule("GET", "/ok")), 4: (Rule(host="["),)})
    assert decide(tables, 3, "GET", "/ok")
    assert not decide(tables, 3, "GET", "/x")
    assert not decide(tables, 4, "GET", "/", "[")
    assert tables.errors[3][0].startswith("rules.http[].path '/(?=x)': look-around is not part of RE2")
    assert tables.errors[4][0].startswith("rules.http[].host '['")


def test_header_matches_are_not_enforced_and_allow_nothing() -> None:
    rule = HttpRule(method="GET", headers=(HeaderMatch(name="X-Token"),))
    assert "rules.http[].headers" in (check_rule(rule) or "")
    assert not decide(compile_rulesets({1: (rule,)}), 1, "GET", "/")
    assert check_rule(HttpRule(method="GET", path="/.*")) is None


def test_limits_are_reported() -> None:
    huge = Rule("GET", "/" + "x{999}" * 6)
    tables = compile_rulesets({1: (huge,), 2: (Rule("GET", "/" + "y{999}" * 6),), 3: (Rule("GET", "/ok"),)})
    assert tables.states <= MAX_STATES
    assert "are left" in tables.errors[2][0]
    assert not decide(tables, 2, "GET", "/" + "y" * 5994)
    assert decide(tables, 1, "GET", "/" + "x" * 5994)
    assert decide(tables, 3, "GET", "/ok")
    assert "distinct HTTP rule sets" in compile_rulesets({MAX_RULESETS: (Rule(),)}).errors[MAX_RULESETS][0]


def test_the_grammar_fits_and_has_a_name() -> None:
    table = http_grammar.build()
    assert http_grammar.fingerprint(table) == http_grammar.fingerprint(http_grammar.build())
    changed = table.copy()
    changed[1, 65] ^= 1
    assert http_grammar.fingerprint(changed) != http_grammar.fingerprint(table)
