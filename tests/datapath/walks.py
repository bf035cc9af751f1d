"""What the packet walks share: three pods, sending, and looking at what happened."""

from __future__ import annotations

from typing import Any

import pytest

from services.agent.abi.events import EventType
from services.model.verdict import Direction
from tests.datapath.node import Node, Pod
from tests.datapath.packets import from_pod

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
FRONTEND, WEBAPP, OTHER = 1001, 1002, 1003
FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])


Pods = tuple[Pod, Pod, Pod]


def make_pods(node: Node) -> Pods:
    """A frontend, a web app that takes the frontend on port 80, and somebody else; egress is open."""
    frontend, webapp, other = node.pod(1, FRONTEND), node.pod(2, WEBAPP), node.pod(3, OTHER)
    for pod in (frontend, webapp, other):
        node.open(pod, EGRESS)
    node.open(frontend, INGRESS)
    node.rule(webapp, INGRESS, FRONTEND, 6, 80, rule_id=77)
    return frontend, webapp, other


def at(pod: Pod, v6: bool) -> str:
    return pod.ipv6 if v6 else pod.ipv4


def seen(node: Node) -> list[tuple[EventType, int, int, int]]:
    """(type, endpoint, rule, drop reason) of the events since the last look."""
    return [
        (EventType(e["type"]), int(e["endpoint_id"]), int(e["rule_id"]), int(e["drop_reason"])) for e in node.events()
    ]


def send(node: Node, source: Pod, destination: str, l4: Any, **fields: Any) -> Any:
    return node.run("from_endpoint", from_pod(source, destination, l4, **fields), source.ifindex)
