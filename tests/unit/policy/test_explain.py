"""Why a verdict is what it is, and which rule almost matched."""

from __future__ import annotations

from typing import Any

from services.model.labels import Labels
from services.model.objects import ObjectKey, PolicyObject
from services.model.verdict import Direction
from services.policy.explain import Part, explain
from services.policy.l7 import Request
from services.policy.peers import Party
from services.policy.read import read_policy
from services.policy.selectors import LabelView
from services.policy.verdict import Mode, Outcome, applying, decide, is_enforced


def party(number: int, *labels: str) -> Party:
    place = ["k8s:io.kubernetes.pod.namespace=ns", "k8s:io.cilium.k8s.policy.cluster=default"]
    return Party(number, LabelView(Labels.parse([*labels, *(place if number > 255 else [])])))


WEB, FRONTEND, OTHER, INIT = (
    party(300, "k8s:app=web"),
    party(301, "k8s:role=frontend"),
    party(302),
    party(5, "reserved:init"),
)


def specs(**spec: Any) -> list[Any]:
    document = {"spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, **spec}}
    policy = read_policy(PolicyObject(ObjectKey("CiliumNetworkPolicy", "ns", "p"), document))
    return applying([policy], WEB)


FROM_FRONTEND = [{"matchLabels": {"role": "frontend"}}]
RULES = [
    {"fromEndpoints": [{"matchLabels": {"role": "nobody"}}]},
    {"fromEndpoints": FROM_FRONTEND, "toPorts": [{"ports": [{"port": "53", "protocol": "UDP"}]}]},
    {"fromEndpoints": FROM_FRONTEND, "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]},
]


def test_the_rule_that_almost_matched() -> None:
    found = explain(specs(ingress=RULES), Direction.INGRESS, WEB, FRONTEND, 6, 81)
    assert found.decision.outcome is Outcome.DROP
    assert [one.failed for one in found.considered] == [(Part.PEER,), (Part.PROTOCOL,), (Part.PORT,)]
    assert found.nearest is not None
    assert found.nearest.rule.path == "spec.ingress[2]"


def test_an_allowed_packet_names_what_allows_it() -> None:
    found = explain(specs(ingress=RULES), Direction.INGRESS, WEB, FRONTEND, 6, 80)
    assert found.decision.outcome is Outcome.ALLOW
    assert [match.rule.path for match in found.decision.matches] == ["spec.ingress[2]"]
    assert found.considered[2].failed == ()


def test_nothing_to_consider() -> None:
    found = explain([], Direction.INGRESS, WEB, FRONTEND, 6, 80)
    assert found.decision.outcome is Outcome.ALLOW
    assert found.nearest is None


def test_a_wrong_peer_and_a_wrong_port() -> None:
    found = explain(specs(ingress=RULES[2:]), Direction.INGRESS, WEB, OTHER, 6, 443)
    assert found.nearest is not None
    assert found.nearest.failed == (Part.PEER, Part.PORT)


def test_modes_and_endpoints_without_labels() -> None:
    closed = specs(ingress=RULES)
    assert decide(closed, Direction.INGRESS, WEB, OTHER, 6, 80, mode=Mode.NEVER).outcome is Outcome.ALLOW
    assert decide([], Direction.EGRESS, WEB, OTHER, 6, 80, mode=Mode.ALWAYS).outcome is Outcome.DROP
    assert decide([], Direction.INGRESS, INIT, OTHER, 6, 80).outcome is Outcome.DROP
    assert is_enforced([], Direction.EGRESS, INIT, Mode.DEFAULT)
    assert not is_enforced(closed, Direction.INGRESS, WEB, Mode.NEVER)
    host = party(1, "reserved:host")
    assert decide(closed, Direction.INGRESS, WEB, host, 6, 80).outcome is Outcome.ALLOW


def test_a_request_that_no_rule_lets_pass() -> None:
    http = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}
    rules = [{"fromEndpoints": FROM_FRONTEND, "toPorts": [http]}, RULES[0]]

    def ask(method: str) -> Any:
        request = Request(method, "/")
        meets = lambda rule, asked: rule.method == asked.method  # noqa: E731
        return explain(specs(ingress=rules), Direction.INGRESS, WEB, FRONTEND, 6, 80, request=request, meets=meets)

    assert [one.failed for one in ask("POST").considered] == [(Part.L7,), (Part.PEER,)]
    assert ask("POST").nearest.rule.path == "spec.ingress[0]"
    assert ask("GET").considered[0].failed == ()
