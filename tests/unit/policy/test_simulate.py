"""What a change of policies would change, and policies made of what was recorded."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest

from services.model.labels import Labels
from services.model.objects import ObjectKey, PolicyObject
from services.model.verdict import Direction
from services.policy.l7 import HttpRule, Request
from services.policy.peers import Party
from services.policy.read import read_policy
from services.policy.rules import Policy
from services.policy.selectors import LabelView
from services.policy.simulate import Actor, simulate, whole
from services.policy.suggest import GENERATED_BY, Observation, Suggestion, suggest
from services.policy.verdict import Mode
from services.policy.world import Answer, Fate, Question, World

PLACE = ["k8s:io.kubernetes.pod.namespace=ns", "k8s:io.cilium.k8s.policy.cluster=default"]


def party(number: int, *labels: str) -> Party:
    return Party(number, LabelView(Labels.parse([*labels, *(PLACE if number > 255 else [])])))


def meets(rule: HttpRule, request: Request) -> bool:
    pairs = ((rule.method, request.method), (rule.path, request.path))
    return all(re.fullmatch(pattern, text) for pattern, text in pairs if pattern)


WEB, FRONTEND, OTHER = party(300, "k8s:app=web"), party(301, "k8s:role=frontend"), party(302, "k8s:app=other")
ACTORS = [Actor(("web",), WEB), Actor(("frontend",), FRONTEND), Actor(("other",), OTHER)]
FRONTENDS = [{"matchLabels": {"role": "frontend"}}]


def policy(name: str = "p", **spec: Any) -> Policy:
    document = {"spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, **spec}}
    return read_policy(PolicyObject(ObjectKey("CiliumNetworkPolicy", "ns", name), document))


def world(*policies: Policy) -> World:
    return World(policies, Mode.DEFAULT, meets)


def tcp(*ports: str, http: list[dict[str, str]] | None = None) -> list[dict[str, Any]]:
    entries = [{"port": port, "protocol": "TCP"} for port in ports]
    return [{"ports": entries, **({"rules": {"http": http}} if http else {})}]


def told(before: World, after: World, actors: list[Actor] = ACTORS) -> list[tuple[str, str, str, str, str]]:
    return [
        (flip.source.names[0], flip.destination.names[0], str(flip.ports), str(flip.before), str(flip.after))
        for flip in simulate(before, after, actors).flips
    ]


def test_a_first_policy_closes_all_but_what_it_allows() -> None:
    after = world(policy(ingress=[{"fromEndpoints": FRONTENDS, "toPorts": tcp("80")}]))
    found = told(world(), after)
    assert ("frontend", "web", "0-79/TCP", "allowed", "dropped by default") in found
    assert ("frontend", "web", "81-65535/TCP", "allowed", "dropped by default") in found
    assert ("other", "web", "*/TCP", "allowed", "dropped by default") in found
    assert ("other", "web", "other protocols", "allowed", "dropped by default") in found
    assert not [each for each in found if each[1] != "web"]


def test_only_what_differs_flips() -> None:
    before = world(policy(ingress=[{"fromEndpoints": FRONTENDS, "toPorts": tcp("80")}]))
    after = world(policy(ingress=[{"fromEndpoints": FRONTENDS, "toPorts": tcp("80", "443")}]))
    assert told(before, after) == [("frontend", "web", "443/TCP", "dropped by default", "allowed")]
    assert told(before, world(*before.policies)) == []
    renamed = world(policy("q", ingress=[{"fromEndpoints": FRONTENDS, "toPorts": tcp("80")}]))
    assert told(before, renamed) == []


def test_http_rules_are_part_of_the_answer() -> None:
    before = world(policy(ingress=[{"fromEndpoints": FRONTENDS, "toPorts": tcp("80")}]))
    after = world(policy(ingress=[{"fromEndpoints": FRONTENDS, "toPorts": tcp("80", http=[{"method": "GET"}])}]))
    text = "allowed, requests are filtered: GET"
    assert told(before, after) == [("frontend", "web", "80/TCP", "allowed", text)]
    asked = [Question(FRONTEND, WEB, 6, 80, Request(method, "/")) for method in ("GET", "POST")]
    assert [whole(after, question).fate for question in asked] == [Fate.ALLOWED, Fate.REFUSED]


def test_both_ends_have_a_say() -> None:
    closed = world(policy(egress=[{"toEndpoints": [{"matchLabels": {"app": "other"}}]}]))
    found = told(world(), closed)
    assert ("web", "frontend", "*/TCP", "allowed", "dropped by default") in found
    assert not [each for each in found if each[:2] == ("web", "other")]


def test_a_prefix_that_only_the_new_policy_names() -> None:
    outside = ipaddress.ip_network("10.1.0.0/16")
    after = world(policy(ingress=[{"fromCIDR": ["10.1.0.0/16"]}]))
    assert told(world(), after, [Actor(("web",), WEB), Actor(("10.1.0.0/16",), after.outside(outside), outside)])[
        :1
    ] == [("web", "web", "*/TCP", "allowed", "dropped by default")]
    assert not [each for each in told(world(), after, [ACTORS[0], Actor(("o",), OTHER, outside)]) if each[0] == "o"]


def test_what_cannot_be_enforced_is_refused() -> None:
    rule = {
        "toEndpoints": [{}],
        "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"kafka": [{"topic": "x"}]}}],
    }
    answer = whole(world(policy(egress=[rule])), Question(WEB, OTHER, 6, 80))
    assert (answer.fate, answer.requests) == (Fate.REFUSED, ("kafka rules on egress are not enforced",))
    rule = {"fromEndpoints": [{}], "authentication": {"mode": "required"}}
    assert whole(world(policy(ingress=[rule])), Question(OTHER, WEB, 6, 80)).fate is Fate.REFUSED


def test_http_rules_on_egress() -> None:
    rule = {"toEndpoints": [{}], "toPorts": tcp("80", http=[{"method": "GET"}])}
    here = world(policy(egress=[rule]))
    assert whole(here, Question(WEB, OTHER, 6, 80)) == Answer(Fate.REQUESTS, ("GET",))
    asked = [Question(WEB, OTHER, 6, 80, Request(method, "/")) for method in ("GET", "POST")]
    assert [whole(here, question).fate for question in asked] == [Fate.ALLOWED, Fate.REFUSED]


def test_the_bound_is_said() -> None:
    found = simulate(world(), world(policy(ingress=[{}])), ACTORS, limit=1)
    assert not found.complete


ADDRESS = ipaddress.ip_address("10.0.0.9")


def seen(direction: Direction, peer: Party, protocol: int, port: int, request: Request | None = None) -> Observation:
    return Observation(direction, peer.view.labels, ADDRESS, protocol, port, request)


WORLD = party(2, "reserved:world")
HOST = party(1, "reserved:host")
OBSERVED = [
    (seen(Direction.INGRESS, FRONTEND, 6, 80, Request("GET", "/a.b")), FRONTEND),
    (seen(Direction.INGRESS, FRONTEND, 6, 80), FRONTEND),
    (seen(Direction.INGRESS, OTHER, 6, 8080), OTHER),
    (seen(Direction.INGRESS, OTHER, 1, 8), OTHER),
    (seen(Direction.EGRESS, OTHER, 17, 53), OTHER),
    (seen(Direction.EGRESS, WORLD, 6, 443), WORLD),
]


def suggested() -> Suggestion:
    observations = {one: 2 for one, _ in OBSERVED}
    observations[seen(Direction.INGRESS, HOST, 6, 80)] = 1
    observations[seen(Direction.INGRESS, OTHER, 47, 0)] = 1
    return suggest("web-seen", "ns", {"app": "web"}, observations, "the last 1h")


def test_a_suggestion_reads_is_marked_and_lets_what_was_seen_pass() -> None:
    found = suggested()
    assert found.document["metadata"]["annotations"][GENERATED_BY] == "ciliate policy suggest"
    assert found.left_out == ("protocol 47: policies cannot name it (1 flows)",)
    policies = world(read_policy(PolicyObject(ObjectKey("CiliumNetworkPolicy", "ns", "web-seen"), found.document)))
    outside = policies.outside(ipaddress.ip_network(f"{ADDRESS}/32"))
    for one, peer in OBSERVED:
        other = outside if peer is WORLD else peer
        source, destination = (other, WEB) if one.direction == Direction.INGRESS else (WEB, other)
        answer = policies.answer(Question(source, destination, one.protocol, one.port, one.request), one.direction)
        assert answer.passes, (one, answer)


@pytest.mark.parametrize(
    ("question", "fate"),
    [
        (Question(FRONTEND, WEB, 6, 80, Request("GET", "/aXb")), Fate.REFUSED),
        (Question(FRONTEND, WEB, 6, 80, Request("POST", "/a.b")), Fate.REFUSED),
        (Question(FRONTEND, WEB, 6, 8080), Fate.DROPPED),
        (Question(OTHER, WEB, 6, 80), Fate.DROPPED),
        (Question(OTHER, WEB, 1, 0), Fate.DROPPED),
        (Question(WEB, OTHER, 17, 54), Fate.DROPPED),
        (Question(WEB, FRONTEND, 17, 53), Fate.DROPPED),
        (Question(WEB, WORLD, 6, 443), Fate.DROPPED),
    ],
)
def test_a_suggestion_allows_nothing_else(question: Question, fate: Fate) -> None:
    document = suggested().document
    policies = world(read_policy(PolicyObject(ObjectKey("CiliumNetworkPolicy", "ns", "web-seen"), document)))
    assert whole(policies, question).fate is fate


def test_nothing_seen_is_nothing_allowed() -> None:
    document = suggest("p", "ns", {"app": "web"}, {}, "the last 1h").document
    policies = world(read_policy(PolicyObject(ObjectKey("CiliumNetworkPolicy", "ns", "p"), document)))
    assert whole(policies, Question(OTHER, WEB, 6, 80)).fate is Fate.DROPPED
    assert whole(policies, Question(WEB, OTHER, 6, 80)).fate is Fate.DROPPED
