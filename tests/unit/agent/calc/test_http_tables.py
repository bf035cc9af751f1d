"""Rule sets -> tables: what the kernel would decide, walked by hand; what is wrong is reported and allows nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.abi.http import ACCEPT, MAX_RULESETS, MAX_STATES
from services.agent.calc import http_grammar
from services.agent.calc.http import HttpTables, check_rule, compile_rulesets
from services.policy.l7 import HeaderMatch, HttpRule
from tests.datapath.http_model import Head, Header, Rule, allow_by

Fields = tuple[tuple[str, str], ...]


def decide(
    tables: HttpTables, ruleset: int, method: str, path: str, fields: Fields = (), absolute: bool = False
) -> bool:
    """The kernel's walk over `METHOD SP path`, and over the fields where that does not decide."""
    state = int(tables.starts[ruleset])

    def at(column: int) -> int:
        return int(tables.rows[state & ~ACCEPT, column])

    def feed(text: str) -> None:
        nonlocal state
        for char in text:
            state = at(min(ord(char), 127))

    feed(f"{method} {path}")
    if state & ACCEPT:
        return True
    feed("\r" if absolute else "\n")
    root, decided, met = state, 0, 0
    for name, value in fields:
        feed(f"{name}:{value}\n")
        again = decided & at(0)
        met, decided = (met | at(1)) & ~again, decided | at(0)
        state = at(2)
    state = root
    if not any(name == "host" for name, _ in fields):
        met |= at(0)
    for column in range(1, 32):
        if not at(column):
            return False
        if met & at(column) == at(column):
            return True
    return False


METHODS = st.sampled_from([None, "GET", "GET|HEAD", "P.*", "[A-Z]+"])
PATHS = st.sampled_from([None, "/", "/a", "/a/.*", "/(a|b)/[0-9]+", "/a.*b", ".*", "/.{2,3}"])
HOSTS = st.sampled_from([None, "x", "x[.]y", ".*[.]z"])
NAMES = st.sampled_from(["x-tag", "X-Tag", "x-ta", "token", "host", "a-b-c"])
HEADERS = st.lists(st.builds(Header, NAMES, st.sampled_from([None, "blue", "b", "a b"])), max_size=2).map(tuple)
RULESETS = st.lists(st.lists(st.builds(Rule, METHODS, PATHS, HOSTS, HEADERS), max_size=4), min_size=1, max_size=5)
REQUESTS = st.tuples(
    st.sampled_from(["GET", "HEAD", "POST", "PUT"]),
    st.sampled_from(["/", "/a", "/a/", "/a/1", "/b/22", "/ab", "/aab", "*", "/a/b?c"]),
    st.lists(
        st.tuples(
            st.sampled_from(["x-tag", "X-TAG", "x_tag", "token", "tokens", "other", "a-b-c", "a_b_c", "a-b_c"]),
            st.sampled_from(["blue", "  blue", " blue ", "\tblue", "blu", "blues", "", "b", "a b", "a  b"]),
        ),
        max_size=4,
    ),
    st.sampled_from([None, "x", "x.y", "a.z"]),
    st.booleans(),
)


@given(RULESETS, st.lists(REQUESTS, min_size=1, max_size=10))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_tables_decide_as_the_rules_mean(
    rulesets: list[list[Rule]], requests: list[tuple[str, str, list[tuple[str, str]], str | None, bool]]
) -> None:
    tables = compile_rulesets(dict(enumerate(rulesets, start=1)))
    assert not tables.errors
    for number, rules in enumerate(rulesets, start=1):
        allow = allow_by(*rules)
        for method, path, others, host, absolute in requests:
            fields = (*others[:1], *((("host", host),) if host is not None else ()), *others[1:])
            head = Head(absolute, tuple((name.lower(), value.lstrip(" ")) for name, value in fields))
            given = (method, path, fields, absolute)
            assert decide(tables, number, *given) == allow(method, path, head), (rules, given)


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
    assert not decide(tables, 4, "GET", "/", (("host", "["),))
    assert tables.errors[3][0].startswith("rules.http[].path '/(?=x)': look-around is not part of RE2")
    assert tables.errors[4][0].startswith("rules.http[].host '['")


def test_headers_that_cannot_be_matched_are_named_and_allow_nothing() -> None:
    for header, words in (
        (HeaderMatch("x y"), "no request can have a header of that name"),
        (HeaderMatch("x", " y"), "blanks around a value"),
        (HeaderMatch("x", "\xe9"), "printable ASCII"),
        (HeaderMatch("x", "a\nb"), "printable ASCII"),
    ):
        rule = HttpRule(method="GET", headers=(header,))
        assert words in (check_rule(rule) or "")
        assert not decide(compile_rulesets({1: (rule,)}), 1, "GET", "/", ((header.name, header.value or ""),))
    assert check_rule(HttpRule(method="GET", path="/.*", headers=(HeaderMatch("x", "y z"),))) is None


def test_bounds_of_headers_are_reported() -> None:
    many = tuple(HttpRule(path="/a", headers=(HeaderMatch("x-tag", f"v{i}"),)) for i in range(17))
    tables = compile_rulesets({1: many, 2: many[:16]})
    assert "more than 16 different headers" in tables.errors[1][0]
    assert not decide(tables, 1, "GET", "/a", (("x-tag", "v1"),))
    assert decide(tables, 2, "GET", "/a", (("x-tag", "v15"),))
    pairs = tuple(
        HttpRule(path="/a", headers=(HeaderMatch(f"a{i}"), HeaderMatch(f"b{j}"))) for i in range(6) for j in range(6)
    )
    assert "more than 31 ways" in compile_rulesets({1: pairs}).errors[1][0]


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
