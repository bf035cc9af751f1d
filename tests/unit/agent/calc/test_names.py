"""Patterns of names: automata against their definition; what the engine makes of DNS rules, toFQDNs, server names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.abi.endpoints import EndpointFlags
from services.agent.abi.names import ACCEPT, MAX_STATES, L7Kind
from services.agent.abi.policy import PolicyEntry, PolicyFlags, PolicyKey
from services.agent.calc.engine import Engine
from services.agent.calc.maps import NameRules, NamesMoved, Put
from services.agent.calc.names import NameTable, compile_selectors, compile_table, is_everything, matches
from services.model.identity import FQDN_MIN, LOCAL_MAX
from services.model.verdict import Direction
from services.policy.world import Fate, Question
from tests.unit.agent.calc.kernel import Kernel
from tests.unit.agent.calc.states import DB, WEB, State, cnp, difference, labels, pod, ports

LABEL = st.text("ab-1", min_size=1, max_size=3)
PATTERN = st.one_of(
    st.lists(st.one_of(LABEL, st.just("*"), st.just("a*"), st.just("*b"), st.just("a**1")), min_size=1, max_size=4).map(
        ".".join
    ),
    st.lists(LABEL, min_size=1, max_size=3).map(lambda parts: "**." + ".".join(parts)),
    st.sampled_from(["*", "**", "*.", "***.a"]),
)
NAME = st.lists(LABEL, max_size=5).map(lambda parts: "".join(f"{part}." for part in parts) or ".")


def walk(table: NameTable, start: int, name: str) -> int:
    """As the kernel does: the last state, with its bit."""
    from services.agent.abi.names import LETTERS

    state = start
    for char in name:
        state = int(table.rows[state & (MAX_STATES - 1), LETTERS.find(char) + 1])
    return state


@settings(max_examples=300, deadline=None)
@given(patterns=st.lists(PATTERN, min_size=1, max_size=6), name=NAME)
def test_tables_mean_what_the_patterns_say(patterns: list[str], name: str) -> None:
    selectors = compile_selectors(patterns)
    assert not selectors.left_out
    found = frozenset(pattern for pattern in patterns if matches(pattern, name))
    assert selectors.matching(name) == found
    identities = {each: 1000 + number for number, each in enumerate(selectors.classes())}
    table = compile_table({3: frozenset(patterns), 4: frozenset({"other"})}, selectors, identities)
    assert bool(walk(table, int(table.starts[3]), name) & ACCEPT) == bool(found)
    assert int(table.identities[walk(table, int(table.starts[0]), name) & (MAX_STATES - 1)]) == identities.get(found, 0)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("*.cilium.io", ["www.cilium.io."], ["cilium.io.", "a.b.cilium.io."]),
        ("*cilium.io", ["cilium.io.", "subcilium.io."], ["www.cilium.io."]),
        ("sub*.cilium.io", ["sub.cilium.io.", "subdomain.cilium.io."], ["www.cilium.io."]),
        ("**.cilium.io", ["app.cilium.io.", "a.b.cilium.io."], ["cilium.io."]),
        ("*", [".", "anything.at.all."], []),
    ],
)
def test_the_references_examples(pattern: str, good: list[str], bad: list[str]) -> None:
    assert all(matches(pattern, name) for name in good)
    assert not any(matches(pattern, name) for name in bad)


def test_what_does_not_fit_allows_nothing_and_is_told() -> None:
    many = [f"{'x' * 60}{number:04d}.{'y' * 60}.test" for number in range(400)]
    selectors = compile_selectors(many, room=500)
    assert selectors.left_out
    table = compile_table({}, selectors, dict.fromkeys(selectors.classes(), 7))
    assert len(table.errors) == len(selectors.left_out)
    assert selectors.matching(selectors.left_out[0] + ".") == frozenset()
    hostile = compile_selectors(f"*{a}*{b}*{c}*.x" for a in "abcdef" for b in "abcdef" for c in "abcdef")
    assert hostile.left_out  # and it took no more than a moment


DNS_RULES = [{"ports": [{"port": "53", "protocol": "UDP"}], "rules": {"dns": [{"matchPattern": "*.test"}]}}]
FQDN = cnp(
    "names",
    egress=[
        {"toEndpoints": labels(app="db"), "toPorts": DNS_RULES},
        {"toFQDNs": [{"matchName": "api.test"}, {"matchPattern": "*.test"}], "toPorts": ports("443")},
    ],
)
PLACE = pod(1, WEB) + pod(2, DB)


def engine_at(state: State) -> tuple[Engine, Kernel, list[Any]]:
    engine, kernel = Engine("node1", sources=()), Kernel()
    for update in difference(State(), state):
        engine.apply(update)
    changes = engine.flush()
    kernel.apply(changes)
    return engine, kernel, changes


def entry(
    kernel: Kernel, peer: int, protocol: int, port: int, direction: Direction = Direction.EGRESS
) -> PolicyEntry | None:
    info = kernel.endpoint(1)
    assert info is not None
    raw = kernel.maps["policy"].get(PolicyKey.of(info.policy_id, direction, peer, protocol, port).pack())
    return None if raw is None else PolicyEntry.unpack(raw)


def test_rules_about_names_become_numbers_identities_and_a_flag() -> None:
    engine, kernel, changes = engine_at(PLACE + FQDN)
    rules = engine.name_rules()
    assert set(rules.identities) == {frozenset({"*.test"}), frozenset({"*.test", "api.test"})}
    for number in rules.identities.values():
        assert FQDN_MIN <= number <= LOCAL_MAX
        found = entry(kernel, number, 6, 443)
        assert found is not None
        assert not found.flags & PolicyFlags.DENY
    dns = entry(kernel, DB, 17, 53)
    assert dns is not None
    kind, number = divmod(dns.l7_ruleset, 1 << 16)
    assert (kind, rules.rulesets[number]) == (L7Kind.DNS, frozenset({"*.test"}))
    info = kernel.endpoint(1)
    assert info is not None
    assert info.flags & EndpointFlags.FQDN
    assert engine.endpoints_by_name("api.test") == {1}
    places = [type(change) for change in changes]
    put = next(at for at, each in enumerate(changes) if isinstance(each, Put) and each.map == "policy")
    assert places.index(NameRules) < put < places.index(NamesMoved)


def test_selectors_that_go_take_their_identities_along() -> None:
    engine, kernel, _ = engine_at(PLACE + FQDN)
    before = set(engine.name_rules().identities.values())
    for update in difference(PLACE + FQDN, PLACE):
        engine.apply(update)
    kernel.apply(engine.flush())
    assert not engine.name_rules().identities
    assert not any(entry(kernel, number, 6, 443) for number in before)
    info = kernel.endpoint(1)
    assert info is not None
    assert not info.flags & EndpointFlags.FQDN


def test_a_plain_allow_opens_names_but_questions_stay_looked_at() -> None:
    plain = cnp("plain", egress=[{"toEndpoints": labels(app="db"), "toPorts": ports("53", protocol="UDP")}])
    wide = cnp("wide", egress=[{"toEndpoints": labels(app="db")}])
    for more, everything in ((plain, True), (wide, False)):
        engine, kernel, _ = engine_at(PLACE + FQDN + more)
        found = entry(kernel, DB, 17, 53)
        assert found is not None
        names = engine.name_rules().rulesets[found.l7_ruleset & 0xFFFF]
        assert any(is_everything(name) for name in names) == everything


def test_what_is_said_of_names_is_what_is_enforced() -> None:
    tls = cnp("tls", egress=[{"toEndpoints": labels(app="db"), "toPorts": ports("443", serverNames=["a.test"])}])
    engine, kernel, _ = engine_at(PLACE + FQDN + tls)
    parties = engine.parties()
    answers = {
        port: engine.world().answer(Question(parties[WEB], parties[DB], protocol, port), Direction.EGRESS)
        for protocol, port in ((17, 53), (6, 443))
    }
    assert answers[53].fate is Fate.REQUESTS
    assert answers[53].requests == ("dns *.test",)
    assert answers[443].requests == ("tls a.test",)
    found = entry(kernel, DB, 6, 443)
    assert found is not None
    assert found.l7_ruleset >> 16 == L7Kind.TLS
    assert all(not each.warnings for each in engine.policy_status())


def test_a_plain_allow_beside_server_names_opens_nothing_for_the_same_selector() -> None:
    def to(name: str, peers: Any, **more: Any) -> State:
        return cnp(name, egress=[{"toEndpoints": peers, "toPorts": ports("443", **more)}])

    names = to("names", labels(app="db"), serverNames=["a.test"]) + to(
        "names2", labels(app="db"), serverNames=["b.test"]
    )
    same = to("same", [*labels(app="db"), *labels(app="api")])
    wider = cnp("wider", egress=[{"toEndpoints": labels(app="db")}])
    other = to("other", [{}])
    for more, asked in ((same, True), (wider, False), (other, False)):
        engine, kernel, _ = engine_at(PLACE + names + more)
        found = entry(kernel, DB, 6, 443)
        assert bool(found and found.l7_ruleset) == asked, more
        parties = engine.parties()
        answer = engine.world().answer(Question(parties[WEB], parties[DB], 6, 443), Direction.EGRESS)
        assert answer.requests == (("tls a.test", "tls b.test") if asked else ()), answer
        assert answer.fate is (Fate.REQUESTS if asked else Fate.ALLOWED)


def test_server_names_are_asked_for_on_ingress_too() -> None:
    rules = [{"fromEndpoints": labels(app="db"), "toPorts": ports("443", serverNames=["a.test"])}]
    engine, kernel, _ = engine_at(PLACE + cnp("in", ingress=rules))
    found = entry(kernel, DB, 6, 443, Direction.INGRESS)
    assert found is not None
    assert (found.l7_ruleset >> 16, found.flags & PolicyFlags.DENY) == (L7Kind.TLS, 0)
    assert engine.name_rules().rulesets[found.l7_ruleset & 0xFFFF] == frozenset({"a.test"})
    assert all(not each.warnings for each in engine.policy_status())
