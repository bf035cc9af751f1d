"""The `Valid` condition of policies: what it says, and what is told about writing it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.agent.server.health import describe_status_writer
from services.agent.server.state import AgentState
from services.agent.sources.kubernetes_status import Seen, StatusWriter, wanted
from services.common.errors import Denied
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.objects import ObjectKey
from services.policy.problems import Problem

KEY = ObjectKey("CiliumNetworkPolicy", "default", "p")
PROBLEM = Problem("spec.ingress[0]", "is wrong")


def verdict(**fields: Any) -> Any:
    return SimpleNamespace(**{"key": KEY, "in_force": True, "problems": (), "warnings": (), "conflicts": (), **fields})


@pytest.mark.parametrize(
    ("fields", "status", "reason", "words"),
    [
        ({}, "True", "Accepted", "succeeded"),
        ({"warnings": (PROBLEM,)}, "True", "Warnings", "spec.ingress[0]: is wrong"),
        ({"conflicts": (PROBLEM,), "warnings": (PROBLEM,)}, "True", "Conflict", "keep what they had: spec.ingress[0]"),
        ({"problems": (PROBLEM,), "conflicts": (PROBLEM,)}, "False", "Rejected", "(the last accepted version stays"),
        ({"problems": (PROBLEM,), "in_force": False}, "False", "Rejected", "(nothing of it is in force)"),
    ],
)
def test_valid_is_about_the_document_and_its_reason_about_the_rest(
    fields: dict[str, Any], status: str, reason: str, words: str
) -> None:
    condition = wanted(verdict(**fields))
    assert (condition["type"], condition["status"], condition["reason"]) == ("Valid", status, reason)
    assert words in condition["message"]


class Server:
    """An API server that takes writes, or refuses them."""

    def __init__(self) -> None:
        self.refuses = True

    async def patch(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        if self.refuses:
            raise Denied("policies may not be written")
        return {}

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        return {}


def test_what_cannot_be_written_is_in_status_and_figures() -> None:
    server = Server()
    source = SimpleNamespace(seen={KEY: Seen("1")}, path_of=lambda key: "/p")
    writer = StatusWriter(server, [source], lambda: [verdict()])
    state, registry = AgentState("node1", "default", "1"), CollectorRegistry()
    describe_status_writer(state, writer, registry)

    def figures() -> tuple[float | None, float | None]:
        names = ("ciliate_policy_status_written_total", "ciliate_policy_status_failing")
        return tuple(registry.get_sample_value(name) for name in names)  # type: ignore[return-value]

    asyncio.run(writer.write())
    (check,) = state.checks
    assert check().health == pb.HEALTH_DEGRADED
    assert "policies may not be written" in check().message
    assert figures() == (0, 1)
    server.refuses = False
    asyncio.run(writer.write())
    assert (check().health, check().message) == (pb.HEALTH_OK, "1 conditions written by this node")
    assert figures() == (1, 0)
    assert state.counters[0]() == {"policy-status:written": 1}
