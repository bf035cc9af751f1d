"""The operator and a real identity service on a real etcd: objects for `kubectl get`, nodes that are gone, leaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.common.pb.identity.v1 import identity_pb2 as pb
from tests.integration.identity.conftest import Replica
from tests.integration.operator.conftest import Cluster, Start, eventually

ENDPOINTS = "/apis/ciliate.io/v1/ciliateendpoints"
SLICES = "/apis/ciliate.io/v1/ciliateendpointslices"
Replicas = Callable[..., Awaitable[Replica]]

pytestmark = pytest.mark.etcd


async def agent(replica: Replica, node: str, pod: str, address: str) -> int:
    """What a node's agent does when a pod starts."""
    await replica.stub.KeepAlive(pb.KeepAliveRequest(node=node))
    number = await replica.allocate([f"k8s:app={pod}"], node)
    row = pb.Endpoint(prefix=f"{address}/32", identity=number, node=node, namespace="default", pod=pod)
    await replica.stub.RegisterEndpoint(pb.RegisterEndpointRequest(endpoint=row))
    return number


async def listed(replica: Replica) -> set[int]:
    return {each.id async for each in replica.stub.List(pb.ListRequest()) if each.id >= 256}


async def test_pods_show_in_kubectl_and_go_with_their_rows(cluster: Cluster, start: Start, replicas: Replicas) -> None:
    replica = await replicas()
    cluster.node("a")
    for name in ("web", "db"):
        cluster.put("/api/v1/pods", name, "default", spec={"nodeName": "a"})
    number = await agent(replica, "a", "web", "10.0.0.2")
    await agent(replica, "a", "db", "10.0.0.3")
    await start(identity_target=replica.target)
    await eventually(lambda: len(cluster.all(ENDPOINTS)) == 2)
    found = cluster.get("/apis/ciliate.io/v1/namespaces/default/ciliateendpoints/web")
    assert found["identity"] == {"id": number, "labels": ["k8s:app=web"]}
    assert (found["addresses"], found["node"]) == (["10.0.0.2"], "a")
    await replica.stub.DeregisterEndpoint(pb.DeregisterEndpointRequest(prefix="10.0.0.2/32", node="a"))
    await eventually(lambda: len(cluster.all(ENDPOINTS)) == 1)
    going = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    cluster.put("/api/v1/namespaces", "default", **going)
    cluster.set("/api/v1/namespaces/default/pods/db", **going)
    made = cluster.server.asked.count(("create", "ciliate.io", "ciliateendpoints"))
    cluster.store.delete(_at("/apis/ciliate.io/v1/namespaces/default/ciliateendpoints/db"))  # as its namespace goes
    await asyncio.sleep(0.8)
    assert cluster.server.asked.count(("create", "ciliate.io", "ciliateendpoints")) == made
    cluster.store.delete(_at("/api/v1/namespaces/default/pods/db"))
    assert not cluster.all(ENDPOINTS), "it belongs to the pod"


async def test_slices(cluster: Cluster, start: Start, replicas: Replicas) -> None:
    replica = await replicas()
    await agent(replica, "a", "web", "10.0.0.2")
    await start(identity_target=replica.target, endpoint_objects="slices")
    await eventually(lambda: cluster.get(f"{SLICES}/default-0")["endpoints"][0]["pod"] == "web")


async def test_a_node_that_is_gone_is_forgotten_and_its_identities_are_collected(
    cluster: Cluster, start: Start, replicas: Replicas
) -> None:
    replica = await replicas(grace_seconds=0.3)
    cluster.node("a")
    kept = await agent(replica, "a", "web", "10.0.0.2")
    lost = await agent(replica, "gone", "db", "10.0.1.2")
    await start(identity_target=replica.target, node_grace_seconds=0.4)
    for _ in range(100):
        await asyncio.sleep(0.1)
        if lost not in await listed(replica):
            break
    assert await listed(replica) == {kept}


async def test_a_node_forgotten_by_mistake_makes_everything_again(replicas: Replicas) -> None:
    replica = await replicas()
    await agent(replica, "a", "web", "10.0.0.2")
    before = (await replica.stub.KeepAlive(pb.KeepAliveRequest(node="a"))).lease
    await replica.stub.ForgetNode(pb.ForgetNodeRequest(node="a"))
    await replica.stub.ForgetNode(pb.ForgetNodeRequest(node="nobody"))
    after = (await replica.stub.KeepAlive(pb.KeepAliveRequest(node="a"))).lease
    assert after != before, "which is how the agent learns of it"
    await agent(replica, "a", "web", "10.0.0.2")


async def test_without_nodes_nothing_is_forgotten(cluster: Cluster, start: Start, replicas: Replicas) -> None:
    replica = await replicas(grace_seconds=0.3)
    number = await agent(replica, "a", "web", "10.0.0.2")
    await start(identity_target=replica.target, node_grace_seconds=0.2, leak_seconds=0.2)
    await asyncio.sleep(1.5)
    assert number in await listed(replica)


def _at(path: str) -> Any:
    from tests.kube.store import place

    return place(path)
