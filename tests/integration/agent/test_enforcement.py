"""When policy is enforced, by the agent's configuration: one policy, the same pods, one agent after another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.pb.flow import flow_pb2 as flow
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel
from tests.integration.agent.cluster import Cluster, Node, Pod, network_policy, sh
from tests.integration.agent.conftest import Load
from tests.integration.agent.reach import PORT, connects

pytestmark = [pytest.mark.root, pytest.mark.etcd]


async def becomes(source: Pod, address: str, *, open_: bool) -> None:
    async with asyncio.timeout(5):
        while await connects(source, address) is not open_:  # noqa: ASYNC110 - other processes change it
            await asyncio.sleep(0.02)


async def restart(cluster: Cluster, node: Node, **options: Any) -> None:
    """Another agent with other settings takes over the maps."""
    await cluster.kill_agent(node)
    cluster.options = options
    await cluster.start_agent(node)
    await cluster.ready(node)


async def audited(node: Node) -> list[flow.Flow]:
    """Flows with verdict AUDIT."""
    request = observer_pb2.GetFlowsRequest(number=100, whitelist=[flow.FlowFilter(verdict=[flow.AUDIT])])
    async with channel(f"unix://{node.run_dir / 'hubble.sock'}", None, "agent") as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        return [answer.flow async for answer in stub.GetFlows(request, timeout=5) if answer.HasField("flow")]


async def test_modes() -> None:
    async with Cluster(nodes=1) as cluster:
        [node] = cluster.nodes
        server = await cluster.add_pod("server", node, app="server")
        client = await cluster.add_pod("client", node, role="client")
        stranger = await cluster.add_pod("stranger", node, role="stranger")
        load = await Load.start(server, "serve", "::", PORT)
        try:
            await modes(cluster, node, server, client, stranger)
        finally:
            await load.kill()


async def modes(cluster: Cluster, node: Node, server: Pod, client: Pod, stranger: Pod) -> None:
    # default: open until a policy selects the pod.
    await becomes(stranger, server.ip, open_=True)
    cluster.apply(network_policy("servers", "server", "client", PORT))
    await becomes(stranger, server.ip, open_=False)
    assert await connects(client, server.ip)

    # Audit: the same verdict, told, and the packets pass.
    await restart(cluster, node, policy_audit_mode=True)
    assert await connects(stranger, server.ip)
    async with asyncio.timeout(5):
        while not (found := await audited(node)):  # noqa: ASYNC110 - other processes change it
            await asyncio.sleep(0.05)
    assert {(each.source.pod_name, each.destination.pod_name) for each in found} == {("stranger", "server")}
    assert [policy.name for policy in found[0].ingress_denied_by] == ["servers"]
    assert "audit: would be refused: default deny by NetworkPolicy default/servers" in found[0].Summary
    await restart(cluster, node, policy_audit_namespaces=["elsewhere"])
    await becomes(stranger, server.ip, open_=False)
    await restart(cluster, node, policy_audit_namespaces=["default"])
    assert await connects(stranger, server.ip)

    # never: rules are ignored.
    await restart(cluster, node, policy_enforcement="never")
    assert await connects(stranger, server.ip)

    # always: closed without any rule, but for the node itself.
    await restart(cluster, node, policy_enforcement="always")
    assert not await connects(stranger, server.ip)
    assert not await connects(client, server.ip), "its own egress is closed, too"
    cluster.remove("NetworkPolicy", "servers")
    await becomes(client, server.ip, open_=False)
    sh(f"ping -c1 -W1 {server.ip}", node.netns)

    # And back: what is open now was closed a moment ago.
    await restart(cluster, node)
    await becomes(stranger, server.ip, open_=True)
