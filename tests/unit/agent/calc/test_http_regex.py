"""Patterns: RE2's dialect, full match. Python's own engine is the oracle where both dialects mean the same."""

from __future__ import annotations

import re

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.calc.http_dfa import Dfa, TooLarge, minimise, pattern_dfa
from services.agent.calc.http_regex import RegexError, parse

LIMIT = 8192


def compiled(pattern: str) -> Dfa:
    return minimise(pattern_dfa(parse(pattern), LIMIT))


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?"])
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, operators).map(lambda pair: f"({pair[0]}){pair[1]}"),
        inner.map(lambda text: f"(?i:{text})"),
    )


ATOMS = st.sampled_from(
    [
        "a",
        "b",
        "A",
        "/",
        "1",
        ".",
        "[ab]",
        "[^a]",
        "[a-z0-9]",
        r"\d",
        r"\w",
        r"\D",
        r"\W",
        r"\.",
        r"\x61",
        "^",
        "$",
        r"[\d/]",
    ]
)
PATTERNS = st.recursive(ATOMS, nested, max_leaves=5)
TEXTS = st.text(alphabet="abAB/1._-", max_size=8)


@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=8))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_agrees_with_python(pattern: str, texts: list[str]) -> None:
    dfa = compiled(pattern)
    for text in texts:
        # Python's $ also matches before a last newline; there are none here.
        assert dfa.matches(text) == (re.fullmatch(pattern, text) is not None), (pattern, text)


SYNTAX = st.text(alphabet="ab/1.*+?|()[]{}\\^$-,:=!<>PiszAQEdwx2", max_size=10)


@given(st.one_of(SYNTAX, PATTERNS), st.lists(TEXTS, min_size=1, max_size=6))
@settings(max_examples=3000, deadline=None, derandomize=True)
def test_agrees_with_re2(pattern: str, texts: list[str]) -> None:
    """What compiles here compiles there and means the same; some of what compiles there does not here, and says why."""
    oracle = by_re2(pattern)
    try:
        dfa = compiled(pattern)
    except (RegexError, TooLarge) as error:
        dfa, why = None, str(error)
    if dfa is None:
        named = ("word boundaries", "Unicode", "multi-line", "repetition of a repetition", "no character")
        assert oracle is None or any(word in why for word in named), (pattern, why)
        return
    assert oracle is not None, pattern
    for text in texts:
        assert dfa.matches(text) == (oracle.fullmatch(text) is not None), (pattern, text)


def by_re2(pattern: str) -> re2._Regexp | None:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None


@given(PATTERNS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_minimal_means_the_same(pattern: str) -> None:
    plain = pattern_dfa(parse(pattern), LIMIT)
    small = minimise(plain)
    assert len(small.edges) <= len(plain.edges)
    for text in ("", "a", "ab", "/1", "aaa", "b/1a", "AB"):
        assert small.matches(text) == plain.matches(text)


@pytest.mark.parametrize(
    ("pattern", "matching", "failing"),
    [
        ("/public", ["/public"], ["/public/x", "/publi", "x/public"]),
        ("/public/.*", ["/public/", "/public/x/y"], ["/public"]),
        ("GET|HEAD", ["GET", "HEAD"], ["GETHEAD", "POST"]),
        ("[[:alpha:]]+", ["abc"], ["ab1", ""]),
        ("[[:^digit:]]", ["x", "/"], ["1"]),
        (r"\Qa.b*\E", ["a.b*"], ["axb"]),
        (r"\Qab\E*", ["a", "abb"], ["abab"]),
        (r"\A/x\z", ["/x"], ["/xx"]),
        ("a{,2}", ["a{,2}"], ["aa"]),
        ("a{2", ["a{2"], ["aa"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[a-]", ["-", "a"], ["b"]),
        (r"\x{2f}\057", ["//"], ["/"]),
        ("(?i)get", ["GET", "gEt"], ["got"]),
        ("a(?i)b|c", ["ab", "aB", "C"], ["Ab"]),
        ("(?i:a)b", ["Ab"], ["AB"]),
        ("(?-s).(?s).", ["ab"], ["a"]),
        ("(?U)a+", ["aa"], [""]),
        ("(?P<n>a)(?<m>b)", ["ab"], ["a"]),
        ("", [""], ["a"]),
        ("a^b", [], ["ab", "a^b"]),
        ("a$", ["a"], ["a$"]),
        ("caf\xe9", [], ["cafe"]),  # never matches: on the wire it is escaped
    ],
)
def test_dialect(pattern: str, matching: list[str], failing: list[str]) -> None:
    dfa = compiled(pattern)
    assert [dfa.matches(text) for text in matching] == [True] * len(matching)
    assert [dfa.matches(text) for text in failing] == [False] * len(failing)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?=a)", "look-around"),
        ("(?<!a)b", "look-around"),
        (r"(a)\1", "back-references"),
        ("(?P=n)", "named back-references"),
        (r"\bx", "word boundaries"),
        (r"\pL", "Unicode classes"),
        ("(?m)^a", "multi-line"),
        ("(?x)a", "unknown group flag"),
        ("*a", "nothing to repeat"),
        ("a**", "repetition of a repetition"),
        ("a{3,2}", "run backwards"),
        ("a{1001}", "more than 1000"),
        ("(a", r"missing \)"),
        ("a)", r"unexpected \)"),
        ("[a", "ends too early"),
        ("[b-a]", "range runs backwards"),
        ("[[:foo:]]", "unknown character class"),
        ("a\\", "ends too early"),
        (r"\y", r"unknown escape"),
        (r"\x{zz}", "is no number"),
        ("(" * 101 + ")" * 101, "nested deeper"),
    ],
)
def test_what_is_not_supported_is_named(pattern: str, message: str) -> None:
    with pytest.raises(RegexError, match=message) as raised:
        parse(pattern)
    assert "at position" in str(raised.value)


@pytest.mark.parametrize("pattern", ["(a|b)*a(a|b){14}", "(x{1000}){1000}", "(.*a){500}"])
def test_explosions_are_reported(pattern: str) -> None:
    with pytest.raises(TooLarge):
        pattern_dfa(parse(pattern), LIMIT)
