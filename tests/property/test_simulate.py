"""Random policies before and after: the flips are the differences, no more and no fewer."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.agent.calc.engine import Engine
from services.agent.calc.requests import meets
from services.model.identity import is_cluster
from services.model.labels import Labels
from services.model.objects import ObjectKey, PolicyObject
from services.model.verdict import Direction
from services.policy.l7 import Request
from services.policy.peers import Party
from services.policy.read import read_policy
from services.policy.selectors import LabelView
from services.policy.simulate import OTHER_PROTOCOL, Actor, simulate, whole
from services.policy.suggest import Observation, suggest
from services.policy.verdict import Mode
from services.policy.world import Question, World
from tests.property.policies import PORTS, cluster, policies

FLOWS = [(6, p) for p in (*PORTS, 2, 78, 444)] + [(17, 53), (17, 80), (132, 80), (1, 0), (1, 8), (58, 128), (47, 0)]
BOUNDED = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


def parties() -> list[Party]:
    engine = Engine("node1", sources=())
    for update in cluster():
        engine.apply(update)
    engine.flush()
    return [party for number, party in sorted(engine.parties().items()) if is_cluster(number) or number in (1, 2, 6)]


def world(documents: list[PolicyObject]) -> World:
    found = {document.key: read_policy(document) for document in documents}
    return World(found.values(), Mode.DEFAULT, meets)


@BOUNDED
@given(st.lists(policies, max_size=2), st.lists(policies, max_size=2))
def test_flips_are_exactly_the_differences(first: list[PolicyObject], second: list[PolicyObject]) -> None:
    before, after = world(first), world(second)
    actors = [Actor((str(party.id),), party) for party in parties()]
    found = simulate(before, after, actors, limit=10**9)
    assert found.complete
    flips: dict[tuple[int, int], list[Any]] = {}
    for flip in found.flips:
        flips.setdefault((flip.source.party.id, flip.destination.party.id), []).append(flip)
    for source in actors:
        for destination in actors:
            for protocol, port in FLOWS:
                question = Question(source.party, destination.party, protocol, port)
                answers = whole(before, question), whole(after, question)
                covering = [
                    flip
                    for flip in flips.get((source.party.id, destination.party.id), ())
                    if flip.ports.protocol == (protocol if protocol in (6, 17, 132, 1, 58) else OTHER_PROTOCOL)
                    and flip.ports.low <= port <= flip.ports.high
                ]
                assert [(flip.before, flip.after) for flip in covering] == (
                    [answers] if answers[0] != answers[1] else []
                )


def observations(people: list[Party]) -> st.SearchStrategy[list[tuple[Observation, Party]]]:
    def one(direction: Direction, peer: Party, flow: tuple[int, int], path: str) -> tuple[Observation, Party]:
        address = peer.addresses[0] if peer.addresses else ANYWHERE
        request = Request("GET", f"/{path}") if flow == (6, 80) and direction == Direction.INGRESS else None
        return Observation(direction, peer.view.labels, address, *flow, request), peer

    flows = st.sampled_from([(6, 80), (6, 443), (17, 53), (132, 80), (1, 8), (58, 128)])
    path = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8)
    return st.lists(st.builds(one, st.sampled_from(list(Direction)), st.sampled_from(people), flows, path), max_size=8)


PEOPLE = [party for party in parties() if is_cluster(party.id)]
ANYWHERE = PEOPLE[0].addresses[0]


@BOUNDED
@given(observations(PEOPLE))
def test_a_suggestion_reproduces_what_was_seen(seen: list[tuple[Observation, Party]]) -> None:
    subject = Party(9999, LabelView(Labels.parse(["k8s:x=y", "k8s:io.kubernetes.pod.namespace=red"])))
    document = suggest("p", "red", {"x": "y"}, {one: 1 for one, _ in seen}, "now").document
    policy = world([PolicyObject(ObjectKey("CiliumNetworkPolicy", "red", "p"), document)])
    for one, peer in seen:
        ends = (peer, subject) if one.direction == Direction.INGRESS else (subject, peer)
        assert policy.answer(Question(*ends, one.protocol, one.port, one.request), one.direction).passes
