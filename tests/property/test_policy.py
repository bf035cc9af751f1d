"""On random policies: the compiled maps say what the oracle says, whatever way the engine came there."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.agent.abi.endpoints import EndpointInfo
from services.agent.calc.engine import Engine
from services.agent.calc.maps import MapName
from services.model.objects import (
    Deleted,
    PolicyObject,
    Update,
    Upserted,
)
from services.model.verdict import Direction
from services.policy.compile import prefixes
from services.policy.peers import Party
from services.policy.problems import PolicyInvalid, Problem
from services.policy.read import read_policy
from services.policy.verdict import Outcome, applying, decide
from tests.property.policies import APPS, PORTS, cluster, party, pods, policies, upserts
from tests.unit.agent.calc.kernel import Kernel
from tests.unit.agent.calc.states import opposite

FLOWS = [(6, p) for p in (*PORTS, 78, 2, 444)] + [(17, 53), (17, 80), (132, 80), (1, 0), (1, 8), (58, 128), (47, 0)]
RED = {("red", app) for app in APPS}
ADDRESSES = [
    ipaddress.ip_address(text)
    for text in ("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.2.0.1", "8.8.8.8", "fd00::9", "2001:db8::1")
]


def run(examples: int) -> settings:
    return settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def engine_with(updates: list[Update]) -> Engine:
    engine = Engine("node1", sources=())
    for update in updates:
        engine.apply(update)
    return engine


def check(engine: Engine, kernel: Kernel, documents: list[PolicyObject]) -> None:
    """Every local endpoint, every peer, every flow: maps against oracle."""
    accepted = {document.key: read_policy(document) for document in documents}.values()
    # Pods one address at a time, as the tables know nothing of; who has no pods as the engine knows them.
    people = [party(pod) for pod in pods()]
    people += [each for each in engine.parties().values() if not each.addresses]
    own = {party(pod).id: party(pod) for pod in reversed(pods()) if pod[:2] in RED}
    for raw in kernel.maps["endpoints"].values():
        info = EndpointInfo.unpack(raw)
        subject = own[int(info.identity)]
        specs = applying(sorted(accepted, key=lambda policy: policy.key), subject)
        for direction in Direction:
            for peer in people:
                for flow in FLOWS:
                    wanted = decide(specs, direction, subject, peer, *flow)
                    where = peer.addresses[0] if peer.addresses else None
                    got = kernel.verdict(int(info.id), direction, peer.id, *flow, where)
                    assert got[0] == wanted.outcome.value, (direction, peer.id, flow, wanted)
                    assert got[1] == (wanted.l7.http_rules() if wanted.l7 else ()), (direction, peer.id, flow)
                    check_rule(engine, got[2], wanted, peer)


def check_rule(engine: Engine, rule_id: int, wanted: Any, peer: Party) -> None:
    """The rule that an entry names is one that matched."""
    ref = engine.catalogue.get(rule_id)
    named = {(match.policy.key.name, match.policy.key.kind, match.rule.path) for match in wanted.matches}
    if ref is not None:
        assert (ref.name, ref.kind, ref.path) in named
    else:
        # Rule 0: nothing is enforced, or nothing that matched decides (the open direction, the local host).
        assert wanted.outcome is not Outcome.DENY


@run(200)
@given(st.lists(policies, min_size=1, max_size=4))
def test_maps_say_what_the_policies_say(documents: list[PolicyObject]) -> None:
    documents = list({document.key: document for document in documents}.values())
    engine = engine_with(cluster() + upserts(documents))
    kernel = Kernel()
    kernel.apply(engine.flush())
    check(engine, kernel, documents)


def without_revisions(content: Any) -> dict[MapName, dict[bytes, bytes]]:
    """Maps but for the policy revision, which counts flushes."""
    maps = {name: dict(found) for name, found in content.items()}
    for key, raw in maps["endpoints"].items():
        info = EndpointInfo.unpack(raw)
        info.policy_revision = 0
        maps["endpoints"][key] = info.pack()
    return maps


def subject_of(update: Update) -> Any:
    match update:
        case Upserted(object=thing):
            return thing.key
        case Deleted(key=key):
            return key
        case _:
            return repr(opposite(update)) if "Upserted" in type(update).__name__ else repr(update)


@run(150)
@given(st.data())
def test_the_way_does_not_matter(data: st.DataObject) -> None:
    """Any updates in any order with flushes anywhere: the maps are those of an engine that was told the end only."""
    base = cluster() + upserts(data.draw(st.lists(policies, min_size=1, max_size=4)))
    order = data.draw(st.permutations(base))
    engine, kernel = Engine("node1", sources=()), Kernel()
    last: dict[Any, Update] = {}
    for update in order:
        choice = data.draw(st.integers(0, 9))
        steps = (
            [update, opposite(update), update]
            if choice < 2
            else [update, opposite(update)]
            if choice == 2
            else [update]
        )
        for step in steps:
            engine.apply(step)
            last[subject_of(step)] = step
            if data.draw(st.integers(0, 2)) == 0:
                kernel.apply(engine.flush())
    kernel.apply(engine.flush())
    assert kernel.maps == {name: dict(found) for name, found in engine.desired().items()}
    fresh = engine_with(list(last.values()))
    fresh.flush()
    assert without_revisions(kernel.maps) == without_revisions(fresh.desired())
    assert fresh.rulesets().items() <= kernel.rulesets.items()


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_ranges_are_exact(first: int, second: int) -> None:
    low, high = sorted((first, second))
    blocks = list(prefixes(low, high))
    assert len(blocks) <= 30
    position = low
    for port, bits in blocks:
        assert port == position
        assert port % (1 << (16 - bits)) == 0
        position += 1 << (16 - bits)
    assert position == high + 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def damaged(draw: st.DrawFn) -> PolicyObject:
    """A policy with one part replaced by anything."""
    source = draw(policies)

    def damage(value: Any) -> Any:
        if isinstance(value, dict) and value and draw(st.integers(0, 3)):
            key = draw(st.sampled_from(sorted(value)))
            return {**value, key: damage(value[key])}
        if isinstance(value, list) and value and draw(st.integers(0, 3)):
            index = draw(st.integers(0, len(value) - 1))
            return [*value[:index], damage(value[index]), *value[index + 1 :]]
        return draw(json_values)

    return PolicyObject(source.key, {**source.document, "spec": damage(source.document["spec"])})


@run(300)
@given(damaged())
def test_any_document_is_read_or_refused_with_reasons(document: PolicyObject) -> None:
    problems: tuple[Problem, ...] | None = None
    try:
        read_policy(document)
    except PolicyInvalid as invalid:
        problems = invalid.problems
    assert problems is None or (problems and all(problem.message for problem in problems))
