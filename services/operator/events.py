"""Events about objects, for `kubectl describe`: each thing is told once while it lasts. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from services.common.kube.resources import EVENTS
from services.operator.writes import Write

COMPONENT = "ciliate-operator"
MAX_MESSAGE = 1024
NAMESPACE = "default"
"""Where events about objects without a namespace are looked for."""


class Told:
    """What was told already."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str, str]] = set()

    def news(
        self, about: Iterable[tuple[str, str, str]], nodes: Mapping[str, Mapping[str, Any]], now: datetime
    ) -> list[Write]:
        """Events for what is new in (node, reason, message); what is over may be told again when it comes back."""
        current = {each for each in about if each[0] in nodes}
        fresh, self._told = sorted(current - self._told), current
        return [_event(nodes[name], reason, message, now) for name, reason, message in fresh]


def _event(node: Mapping[str, Any], reason: str, message: str, now: datetime) -> Write:
    name = node["metadata"]["name"]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    digest = hashlib.sha256(f"{name}{reason}{message}{time}".encode()).hexdigest()[:16]
    document = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name[:200]}.{digest}", "namespace": NAMESPACE},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": name, "uid": name},
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "type": "Warning",
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
    return Write("create", EVENTS, document["metadata"]["name"], NAMESPACE, document)  # type: ignore[index]
