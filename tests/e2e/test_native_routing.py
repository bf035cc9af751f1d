"""The demonstration with native routing: the same verdicts and the same flows, and nothing encapsulated."""

from __future__ import annotations

import os

import pytest

from services.sandbox import netns
from services.sandbox.checks import example
from services.sandbox.scenario import Scenario
from services.sandbox.supervisor import Sandbox

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


async def test_the_scenario_without_an_overlay() -> None:
    async with Sandbox(f"native-{os.getpid()}", routing_mode="native") as sandbox:
        sandbox.apply(example())
        await sandbox.wait_ready(60.0)
        for node in sandbox.topology.nodes:
            others = [other for other in sandbox.topology.nodes if other is not node]
            assert "vxlan" not in await netns.in_netns(node.netns, "ip -d link")
            assert "mtu 1500" in await netns.in_netns(node.netns, "ip link show type veth")
            routes = await netns.in_netns(node.netns, "ip route; ip -6 route")
            for other in others:
                assert f"{other.pod_cidr4} via {other.address4}" in routes
                assert f"{other.pod_cidr6} via {other.address6}" in routes
        results = await Scenario(sandbox).run()
    wrong = [f"{result.check}: {result.got}, not {result.check.expected}" for result in results if not result.ok]
    assert not wrong
    assert len(results) > 30
