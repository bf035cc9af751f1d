"""Nodes are kept free of pods until their agent is ready: the taint goes when it is. Pure.

Whoever makes nodes gives them the taint (`--register-with-taints`); pods that were started before the agent would have
no network, or another one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from services.common.kube.resources import NODES
from services.operator.conditions import condition, updated
from services.operator.writes import Write

AGENT_NOT_READY = "node.ciliate.io/agent-not-ready"
NETWORK_UNAVAILABLE = "NetworkUnavailable"

Document = Mapping[str, Any]


def ready_nodes(agents: Iterable[Document]) -> frozenset[str]:
    """Nodes whose agent's pod is ready."""
    return frozenset(
        str((pod.get("spec") or {}).get("nodeName"))
        for pod in agents
        if any(
            each.get("type") == "Ready" and each.get("status") == "True"
            for each in (pod.get("status") or {}).get("conditions") or ()
        )
        and not pod["metadata"].get("deletionTimestamp")
    )


def plan(nodes: Iterable[Document], ready: frozenset[str], now: datetime) -> list[Write]:
    """Writes for nodes that are ready and do not look it. Nothing is taken back: an agent that restarts leaves the
    network as it is, and pods go on."""
    writes = []
    for node in nodes:
        name = node["metadata"]["name"]
        if name not in ready:
            continue
        version = {"metadata": {"resourceVersion": node["metadata"].get("resourceVersion")}}
        taints = (node.get("spec") or {}).get("taints") or []
        kept = [taint for taint in taints if taint.get("key") != AGENT_NOT_READY]
        if kept != taints:
            writes.append(Write("patch", NODES, name, document=version | {"spec": {"taints": kept}}))
            continue
        wish = condition(NETWORK_UNAVAILABLE, False, "CiliateIsUp", "ciliate is running on this node")
        conditions = updated(node, [wish], now)
        if conditions is not None:
            document = version | {"status": {"conditions": conditions}}
            writes.append(Write("patch", NODES, name, document=document, subresource="status"))
    return writes
