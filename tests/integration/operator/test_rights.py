"""The chart's roles against what the processes really ask: enough for everything that they do, and nothing more."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from services.agent.certificate import Certificate
from services.agent.sources.kubernetes import KubernetesSource, resources_for
from services.agent.sources.node_ranges import NodeRanges
from services.common.kube.client import KubeClient
from services.common.kube.locate import Replicas
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.retry import Backoff
from services.model.objects import Synced
from services.operator.definitions import REVISION, shipped
from tests.integration.identity.conftest import Replica
from tests.integration.operator.conftest import Cluster, Start, eventually
from tests.integration.operator.test_certificates import ask_as, files_in, secret
from tests.integration.operator.test_operator import (
    DEFINITIONS,
    KINDS,
    LB_POOLS,
    NODES,
    POOLS,
    TAINT,
    blocks,
    condition,
)
from tests.unit.deploy.chart import MEMBERS, rendered

REQUESTS = "certificatesigningrequests"
SIGNERS = ("certificates.k8s.io", "signers")
"""Asked by the API server's own admission, not by a request that the emulator sees."""


def granted(process: str) -> set[tuple[str, str, str]]:
    """(verb, group, resource) of every rule of a process's roles."""
    found = set()
    for document in rendered(MEMBERS):
        if document["kind"] in ("Role", "ClusterRole") and document["metadata"]["name"] == f"ciliate-{process}":
            for rule in document["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        if (group, resource) != SIGNERS:
                            found |= {(verb, group, resource) for verb in rule["verbs"]}
    assert found
    return found


def refuse_others(cluster: Cluster, process: str) -> list[tuple[str, str, str]]:
    """The server obeys the chart's roles from now on; returns what it refused."""
    rights, refused = granted(process), []

    def allowed(asked: tuple[str, str, str]) -> bool:
        if asked not in rights:
            refused.append(asked)
        return asked in rights

    cluster.server.faults.allowed = allowed
    return refused


def told(names: Iterable[tuple[str, str, str]]) -> list[str]:
    return sorted(" ".join(each) for each in names)


@pytest.mark.etcd
async def test_the_operators_rights_are_what_its_chores_use(
    cluster: Cluster, start: Start, replicas: Callable[..., Awaitable[Replica]]
) -> None:
    refused = refuse_others(cluster, "operator")
    old = next(each for each in shipped() if each["spec"]["names"]["plural"] == "ciliatenodes")
    old["metadata"]["annotations"][REVISION] = "0"
    cluster.put(DEFINITIONS, old["metadata"]["name"], metadata=old["metadata"], spec=old["spec"])
    ask_as(cluster, "system:serviceaccount:kube-system:ciliate-agent", "a")
    identity = await replicas()
    labels = {"kubernetes.io/service-name": "ciliate-identity"}
    slices, endpoints = "/apis/discovery.k8s.io/v1/endpointslices", [{"addresses": ["127.0.0.1"]}]
    cluster.put(slices, "s", "kube-system", metadata={"labels": labels}, addressType="IPv4", endpoints=endpoints)
    target = f"k8s://kube-system/ciliate-identity:{identity.target.rpartition(':')[2]}"
    settings: dict[str, Any] = {
        "certificates": "authority",
        "cluster_pool_cidr": ["10.0.0.0/24"],
        "identity_target": target,
    }
    first = await start("one", etcd_addresses=["10.0.0.1"], **settings)
    await eventually(lambda: len(cluster.all(DEFINITIONS)) == KINDS)
    await everything_else(cluster)
    await pods_with_identities(cluster, identity)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    before = secret(cluster, "ciliate-etcd-tls")["data"]
    await start("two", etcd_addresses=["10.0.0.2"], **settings)
    await eventually(lambda: secret(cluster, "ciliate-etcd-tls")["data"] != before)
    assert not refused
    assert told(granted("operator") - set(cluster.server.asked)) == [], "granted, but nobody needs it"


async def everything_else(cluster: Cluster) -> None:
    """Every chore has something to do, and does it."""
    cluster.put(LB_POOLS, "pool", spec={"blocks": [{"cidr": "192.0.2.0/31"}]})
    cluster.put(POOLS, "gold", spec={"ipv4": {"cidrs": ["10.50.0.0/24"], "maskSize": 28}})
    cluster.node("a", taints=[TAINT])
    await eventually(lambda: blocks(cluster, "a"))
    cluster.put("/api/v1/namespaces", "rich", metadata={"annotations": {"ipam.ciliate.io/pool": "gold"}})
    cluster.put("/api/v1/pods", "p", "rich", spec={"nodeName": "a"})
    await eventually(lambda: len(blocks(cluster, "a")) > 1)  # a range more
    cluster.node("b")  # no block is left: an event
    await eventually(lambda: cluster.all("/api/v1/events"))
    labels = {"app.kubernetes.io/name": "ciliate-agent", "app.kubernetes.io/instance": "ciliate"}
    cluster.put("/api/v1/pods", "agent-a", "kube-system", metadata={"labels": labels}, spec={"nodeName": "a"})
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    cluster.set("/api/v1/namespaces/kube-system/pods/agent-a", status=status)
    await eventually(lambda: not cluster.get("/api/v1/nodes/a")["spec"]["taints"])
    await eventually(lambda: condition(cluster.get("/api/v1/nodes/a"), "NetworkUnavailable"))
    spec = {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]}
    cluster.put("/api/v1/services", "web", "default", spec=spec)
    await eventually(lambda: cluster.get("/api/v1/namespaces/default/services/web")["status"]["loadBalancer"])
    await eventually(lambda: condition(cluster.get(f"{LB_POOLS}/pool"), "cilium.io/IPsUsed"))
    await eventually(lambda: condition(cluster.get(f"{POOLS}/gold"), "Valid"))
    await eventually(lambda: condition(cluster.get(f"{NODES}/a"), "Ready"))
    async with KubeClient(cluster.server.kubeconfig) as client:
        with tempfile.TemporaryDirectory() as folder:
            cluster.server.faults.allowed, refusing = lambda asked: True, cluster.server.faults.allowed
            begun = len(cluster.server.asked)
            await Certificate(client, files_in(Path(folder)), "a", Backoff(0.05, 0.2)).ensure()
            cluster.server.faults.allowed = refusing
            # What the agent asked is not the operator's.
            mine = {("create", "certificates.k8s.io", REQUESTS), ("get", "certificates.k8s.io", REQUESTS)}
            cluster.server.asked[begun:] = [each for each in cluster.server.asked[begun:] if each not in mine]
    request = {"signerName": "ciliate.io/agent", "request": "", "usages": []}
    cluster.put("/apis/certificates.k8s.io/v1/certificatesigningrequests", "bad", spec=request)
    await eventually(
        lambda: condition(cluster.get("/apis/certificates.k8s.io/v1/certificatesigningrequests/bad"), "Denied")
    )


async def pods_with_identities(cluster: Cluster, identity: Replica) -> None:
    """A pod's object comes, changes and goes."""
    cluster.put("/api/v1/pods", "seen", "rich", spec={"nodeName": "a"})
    path = "/apis/ciliate.io/v1/namespaces/rich/ciliateendpoints/seen"
    await identity.stub.KeepAlive(pb.KeepAliveRequest(node="a"))
    for app in ("one", "two"):
        number = await identity.allocate([f"k8s:app={app}"], "a")
        row = pb.Endpoint(prefix="10.0.0.9/32", identity=number, node="a", namespace="rich", pod="seen")
        await identity.stub.RegisterEndpoint(pb.RegisterEndpointRequest(endpoint=row))
        await eventually(lambda number=number: cluster.get(path)["identity"]["id"] == number)
    await identity.stub.DeregisterEndpoint(pb.DeregisterEndpointRequest(prefix="10.0.0.9/32", node="a"))
    await eventually(lambda: not cluster.all("/apis/ciliate.io/v1/ciliateendpoints"))


async def watching(cluster: Cluster, follower: AsyncIterator[Any]) -> None:
    """Follow until the server is asked to watch."""
    before = len(cluster.server.watches)
    following = asyncio.ensure_future(anext(follower))
    await eventually(lambda: len(cluster.server.watches) > before)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_the_agents_rights_are_what_it_asks(cluster: Cluster, start: Start, tmp_path: Path) -> None:
    ask_as(cluster, "system:serviceaccount:kube-system:ciliate-agent", "a")
    operator = await start(certificates="authority")
    cluster.node("a")
    await eventually(lambda: blocks(cluster, "a"))
    await eventually(lambda: len(cluster.all("/api/v1/secrets")) == 5)
    async with KubeClient(cluster.server.kubeconfig) as client, asyncio.timeout(30):
        await Certificate(client, files_in(tmp_path), "a", Backoff(0.05, 0.2)).ensure()
        operator.cancel()
        await asyncio.gather(operator, return_exceptions=True)
        requests = [each for each in cluster.server.asked if each[2] == REQUESTS and each[0] in ("create", "get")]
        cluster.server.asked[:] = requests
        refused = refuse_others(cluster, "agent")
        for mode in ("kubernetes", "cluster-pool"):
            cluster.set("/api/v1/nodes/a", spec={"podCIDRs": ["10.9.0.0/24"]})
            ranges = NodeRanges(client, "a", mode, "default", tmp_path / f"{mode}.json")
            assert await ranges.first()
            await watching(cluster, ranges.changes())
        slices = "/apis/discovery.k8s.io/v1/endpointslices"
        labels = {"kubernetes.io/service-name": "ciliate-identity"}
        endpoints = [{"addresses": ["192.0.2.7"]}]
        cluster.put(
            slices, "s", "kube-system", metadata={"labels": labels}, addressType="IPv4", endpoints=endpoints, ports=[]
        )
        assert await Replicas(client, "k8s://kube-system/ciliate-identity:4250")() == "ipv4:192.0.2.7:4250"
        for resource in resources_for("a"):
            source = KubernetesSource(client, resource)
            async for update in source.updates():
                if isinstance(update, Synced):
                    break
            await watching(cluster, source.updates())
            assert not source.errors
    assert not refused
    # Conditions are patched on the status of the kinds that have one (services.agent.sources.kubernetes_status).
    groups = {each for each in resources_for("a") if each.has_status}
    patched = {("patch", each.path.split("/")[2], each.path.rpartition("/")[2] + "/status") for each in groups}
    assert told(granted("agent") - patched - set(cluster.server.asked)) == [], "granted, but nobody needs it"
    assert patched <= granted("agent")
