"""The agent dies, again and again, under load: nothing that is allowed is lost, nothing that is forbidden passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.client import Identities, Target
from services.model.identity import NumericIdentity
from services.model.labels import Labels
from tests.integration.agent.cluster import Cluster, Node, network_policy
from tests.integration.agent.conftest import Load

pytestmark = [pytest.mark.root, pytest.mark.etcd]

PORT = 7000


def policy() -> dict[str, Any]:
    document = network_policy("servers", "server", "client", PORT)
    document["spec"]["ingress"][0]["ports"].append({"protocol": "UDP", "port": PORT})
    return document


@pytest.fixture
async def loads() -> AsyncIterator[list[Load]]:
    loads: list[Load] = []
    yield loads
    for load in loads:
        await load.kill()


async def test_a_killed_agent_loses_nothing_and_lets_nothing_through(cluster: Cluster, loads: list[Load]) -> None:
    near, far = cluster.nodes
    cluster.apply(policy())
    servers = [
        await cluster.add_pod("server1", near, app="server"),
        await cluster.add_pod("server2", far, app="server"),
    ]
    client = await cluster.add_pod("client", near, role="client")
    stranger = await cluster.add_pod("stranger", near, role="stranger")
    loads += [await Load.start(server, "serve", "::", PORT) for server in servers]
    await settled(cluster)
    clients: dict[str, Load] = {}
    for server in servers:
        for address in server.addresses:
            for role in ("established", "new", "datagrams"):
                clients[f"{role} {address}"] = await Load.start(client, role, address, PORT)
            clients[f"forbidden {address}"] = await Load.start(stranger, "forbidden", address, PORT)
    loads += clients.values()
    await asyncio.sleep(0.5)
    used = await held(cluster, near)
    for node in (near, far):
        await cluster.kill_agent(node)
    leaked = await leak(cluster, near)
    await asyncio.sleep(0.5)
    for node in (near, far):
        await cluster.start_agent(node)
    await asyncio.sleep(0.7)  # somewhere in the middle of its start
    await cluster.kill_agent(near)
    await cluster.start_agent(near)
    status = [await cluster.ready(node) for node in (near, far)]
    assert [answer.endpoints for answer in status] == [3, 1]
    async with asyncio.timeout(10):
        while leaked in await held(cluster, near):  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.05)
    assert await held(cluster, near) == used, "what its pods have it holds"
    results = {name: await load.finish() for name, load in clients.items()}
    for name, result in results.items():
        match name.split()[0]:
            case "established":
                assert "error" not in result, (name, result)
                assert result["answers"] > 100, (name, result)
            case "new":
                assert (result["errors"], result["retransmits"]) == ([], 0), (name, result)
                assert result["opened"] > 50, (name, result)
            case "datagrams":
                assert result["lost"] == 0, (name, result)
            case "forbidden":
                assert result["through"] == 0, (name, result)
                assert result["tried"] > 5, (name, result)


def identities(cluster: Cluster) -> Identities:
    return Identities(Target(f"unix://{cluster.root / 'identity.sock'}"))


async def held(cluster: Cluster, node: Node) -> set[NumericIdentity]:
    async with identities(cluster) as service:
        return set(await service.references(node.name))


async def leak(cluster: Cluster, node: Node) -> NumericIdentity:
    """As an agent does that dies between a pod's identity and its record."""
    async with identities(cluster) as service:
        return (await service.allocate(Labels.parse(["k8s:app=leaked"]), node.name)).identity.id


def http_policy() -> dict[str, Any]:
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET", "path": "/allowed"}]}}]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "web"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"fromEndpoints": [{"matchLabels": {"role": "client"}}], "toPorts": ports}],
        },
    }


async def test_http_policy_outlives_the_agent(cluster: Cluster, loads: list[Load]) -> None:
    near, far = cluster.nodes
    cluster.apply(http_policy())
    web = await cluster.add_pod("web", near, app="web")
    clients = [
        await cluster.add_pod("client1", near, role="client"),
        await cluster.add_pod("client2", far, role="client"),
    ]
    loads.append(await Load.start(web, "web", "::", 80))
    await settled(cluster)
    kept = [await Load.start(client, "requests", web.ip, 80) for client in clients]
    refused = [await Load.start(client, "refused", web.ip, 80) for client in clients]
    loads += [*kept, *refused]
    await asyncio.sleep(0.3)
    for _ in range(2):
        await cluster.kill_agent(near)
        await asyncio.sleep(0.3)
        await cluster.start_agent(near)
        await cluster.ready(near)
    for load in kept:
        result = await load.finish()
        assert set(result["answers"]) == {"200"}, result
        assert result.get("same_connection"), result
    for load in refused:
        result = await load.finish()
        assert set(result["answers"]) == {"403"}, result


async def test_what_changed_while_the_agent_was_away_holds_when_it_is_back(cluster: Cluster, loads: list[Load]) -> None:
    node = cluster.nodes[0]
    cluster.apply(policy())
    server = await cluster.add_pod("server", node, app="server")
    client = await cluster.add_pod("client", node, role="client")
    gone = await cluster.add_pod("gone", node, role="client")
    loads.append(await Load.start(server, "serve", "::", PORT))
    await settled(cluster)
    running = await Load.start(client, "new", server.ip, PORT)
    loads.append(running)
    await cluster.kill_agent(node)
    # The runtime deletes a pod, and gets its way; a label change and another pod's end are only in the objects.
    assert await cluster.cni("DEL", gone) == (0, {})
    assert (await cluster.cni("ADD", gone))[1]["code"] == 11
    cluster.remove("Pod", "gone")
    cluster.pod_object("client", node, {"role": "stranger"})
    assert (await running.finish())["errors"] == []
    await cluster.start_agent(node)
    await cluster.ready(node)
    # The socket that the killed agent left says nothing: the queue is worked off before there is a new one.
    async with asyncio.timeout(20):
        while (await cluster.status(node)).endpoints != 2:  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.05)
    refused = await Load.start(client, "forbidden", server.ip, PORT)
    loads.append(refused)
    await settled(cluster)
    await asyncio.sleep(0.5)
    await refused.finish()
    after = await Load.start(client, "forbidden", server.ip, PORT)
    loads.append(after)
    await asyncio.sleep(0.5)
    assert (await after.finish())["through"] == 0


async def settled(cluster: Cluster) -> None:
    """Wait until every node knows of every pod."""
    rows = sum(len(pod.addresses) for pod in cluster.pods.values())

    async def known() -> bool:
        statuses = [await cluster.status(node) for node in cluster.nodes]
        return all(usage.entries >= rows for s in statuses for usage in s.maps if usage.name == "ipcache")

    async with asyncio.timeout(10):
        while not await known():  # noqa: ASYNC110 - other processes change it
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
