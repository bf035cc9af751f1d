"""What cannot be merged for one port and one peer (policy-semantics 3.4), and what can."""

from __future__ import annotations

from typing import Any

import pytest

from services.model.labels import Labels
from services.model.objects import ObjectKey, PolicyObject
from services.policy.conflicts import conflicts, conflicts_anywhere
from services.policy.nodes import node_view
from services.policy.read import read_policy
from services.policy.selectors import LabelView

TLS = {"terminatingTLS": {"secret": {"name": "one"}}}
OTHER_TLS = {"terminatingTLS": {"secret": {"name": "two"}}}
TO_TLS = {"originatingTLS": {"secret": {"name": "one"}}}
TO_OTHER_TLS = {"originatingTLS": {"secret": {"name": "two"}}}
HTTP: dict[str, Any] = {"rules": {"http": [{"path": "/a"}]}}
KAFKA: dict[str, Any] = {"rules": {"kafka": [{"topic": "t"}]}}
DNS: dict[str, Any] = {"rules": {"dns": [{"matchPattern": "*"}]}}
GENERIC: dict[str, Any] = {"rules": {"l7proto": "r2d2", "l7": [{"cmd": "READ"}]}}
SNI = {"serverNames": ["a.example"]}


def listener(name: str, priority: int) -> dict[str, Any]:
    config = {"kind": "CiliumEnvoyConfig", "name": "c"}
    return {"listener": {"envoyConfig": config, "name": name, "priority": priority}}


def found(*elements: dict[str, Any]) -> list[str]:
    """Reasons of the conflicts between egress elements, one document each."""
    specs = []
    for number, element in enumerate(elements):
        spec = {"endpointSelector": {}, "egress": [element]}
        document = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": spec}
        policy = read_policy(PolicyObject(ObjectKey("CiliumNetworkPolicy", "default", f"p{number}"), document))
        specs += [(policy, spec) for spec in policy.specs]
    return [conflict.reason for conflict in conflicts(specs)]


def to(app: str = "a", port: str = "80", authentication: str = "", **more: Any) -> dict[str, Any]:
    element: dict[str, Any] = {
        "toEndpoints": [{"matchLabels": {"app": app}}],
        "toPorts": [{"ports": [{"port": port, "protocol": "TCP"}], **more}],
    }
    return element | ({"authentication": {"mode": authentication}} if authentication else {})


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (to(**HTTP), to(**KAFKA), "one port has http and kafka rules"),
        (to(**HTTP), to(**DNS), "one port has dns and http rules"),
        (to(**HTTP), to(**GENERIC), "one port has http and r2d2 rules"),
        (to(**HTTP), to(**listener("l", 1)), "one port has http and listener rules"),
        (to(**SNI), to(**DNS), "one port has dns rules and server names"),
        (to(**SNI), to(**HTTP), "server names and http rules need terminatingTLS"),
        (to(**TLS), to(**OTHER_TLS), "one port has two TLS contexts"),
        (to(**TO_TLS), to(**TO_OTHER_TLS), "one port has two TLS contexts"),
        (to(**TO_TLS, **HTTP), to(**TO_OTHER_TLS), "one port has two TLS contexts"),
        (to(**listener("l", 5)), to(**listener("m", 5)), "one port has two listeners of one priority"),
        (to(authentication="required"), to(authentication="disabled"), "authentication is both disabled and required"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_conflicts(first: dict[str, Any], second: dict[str, Any], reason: str) -> None:
    assert found(first, second) == [reason]
    assert found(second, first) == [reason]
    assert found(first, first, second) == [reason]


@pytest.mark.parametrize(
    "elements",
    [
        (to(**HTTP), to(**HTTP), to()),
        (to("a", **HTTP), to("b", **KAFKA)),
        (to(port="80", **HTTP), to(port="81", **KAFKA)),
        (to(**TLS), to(**HTTP)),
        (to(**TLS), to(**TLS), to(**SNI)),
        (to(**TO_TLS), to(**TLS), to(**HTTP)),
        (to(**listener("l", 5)), to(**listener("m", 6)), to(**listener("l", 5))),
        (to(authentication="required"), to(authentication="required"), to()),
    ],
    ids=[
        "same parser and plain",
        "other peer",
        "other port",
        "tls promoted",
        "one context",
        "both contexts",
        "priorities",
        "one-sided",
    ],
)
def test_what_can_be_merged(elements: tuple[dict[str, Any], ...]) -> None:
    assert found(*elements) == []


def wide(name: str, selector: dict[str, Any], element: dict[str, Any], kind: str = "endpointSelector") -> Any:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "spec": {kind: selector, "egress": [element]},
    }
    return read_policy(PolicyObject(ObjectKey("CiliumClusterwideNetworkPolicy", "", name), document))


def test_a_conflict_is_one_where_somebody_is_selected_by_both() -> None:
    blue, red = {"matchLabels": {"colour": "blue"}}, {"matchLabels": {"colour": "red"}}
    big = {"matchLabels": {"size": "big"}}
    first, second = wide("http", blue, to(**HTTP)), wide("kafka", big, to(**KAFKA))
    again = wide("http-too", red, to(**HTTP))

    def told(*labels: str) -> list[set[str]]:
        subjects = [(LabelView(Labels.parse(label.split(","))), False) for label in labels]
        return [{c.first.name, c.second.name} for c in conflicts_anywhere([first, second, again], subjects)]

    assert told("k8s:colour=blue", "k8s:size=big", "k8s:colour=red") == []
    assert told("k8s:colour=blue,k8s:size=big") == [{"http", "kafka"}]
    # That of two equal claims one is met by nobody does not hide the other.
    assert told("k8s:colour=red,k8s:size=big") == [{"http-too", "kafka"}]
    assert conflicts_anywhere([first, second, again], []) == ()


def test_nodes_and_pods_do_not_meet_in_a_conflict() -> None:
    def authenticated(mode: str, kind: str) -> Any:
        return wide(mode, {}, to(authentication=mode), kind)

    pods, nodes = authenticated("required", "endpointSelector"), authenticated("disabled", "nodeSelector")
    everybody = [(LabelView(Labels.parse(["k8s:a=b"])), False), (node_view({}), True)]
    assert conflicts_anywhere([pods, nodes], everybody) == ()
    assert len(conflicts_anywhere([authenticated("required", "nodeSelector"), nodes], everybody)) == 1
