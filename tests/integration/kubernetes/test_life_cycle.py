"""Pods and namespaces live; identities, endpoints and rows follow: from the API server to what an agent holds."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from services.agent.endpoints.links import Attachment
from services.agent.endpoints.manager import AddRequest
from services.agent.sources.kubernetes import KubernetesSource, resources_for
from services.common.errors import Exhausted
from services.common.kube.client import KubeClient
from services.common.kube.resources import NAMESPACES
from services.common.retry import Backoff
from tests.kube.apiserver import ApiServer, Memory
from tests.kube.store import Store, place
from tests.unit.agent.endpoints.test_manager import Bench

PODS = "/api/v1/namespaces/{}/pods"


class Node:
    """An agent's endpoints, fed by an API server."""

    def __init__(self, store: Store, bench: Bench) -> None:
        self.store, self.bench = store, bench

    def pod(self, name: str, namespace: str = "shop", node: str = "n1", **fields: Any) -> None:
        metadata = {"name": name, **fields.pop("metadata", {})}
        spec = {"nodeName": node, "containers": [], **fields.pop("spec", {})}
        self.store.create(place(PODS.format(namespace)), {"metadata": metadata, "spec": spec, **fields})

    def change(self, name: str, namespace: str = "shop", **change: Any) -> None:
        self.store.write(place(f"{PODS.format(namespace)}/{name}"), change, merge=True)

    def labels(self) -> set[str]:
        """Of the one endpoint."""
        (record,) = self.bench.manager.endpoints.values()
        return set(record.labels.texts())

    async def add(self, name: str, container: str = "c1", namespace: str = "shop") -> Any:
        """The runtime starts the pod."""
        return await self.bench.manager.add(AddRequest(Attachment(container, "/ns", "eth0"), namespace, name))

    async def delete(self, container: str = "c1") -> None:
        await self.bench.manager.delete(Attachment(container, "/ns", "eth0"))


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    store, bench = Store(), Bench(tmp_path / "endpoints")
    store.create(place("/api/v1/namespaces"), {"metadata": {"name": "shop", "labels": {"team": "red"}}})
    async with ApiServer(Memory(store), tmp_path) as server, KubeClient(server.kubeconfig) as client:

        async def feed(source: KubernetesSource) -> None:
            async for update in source.updates():
                bench.manager.observe(update)

        resources = (resources_for("n1")[0], NAMESPACES)
        sources = [KubernetesSource(client, resource, Backoff(0.02, 0.1)) for resource in resources]
        tasks = [asyncio.create_task(feed(source)) for source in sources]
        bench.start()
        yield Node(store, bench)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bench.stop()


async def test_labels_of_pod_namespace_account_and_cluster(node: Node) -> None:
    node.pod("web", metadata={"labels": {"app": "web"}}, spec={"serviceAccountName": "clerk"})
    await node.add("web")
    await until(lambda: "k8s:io.cilium.k8s.namespace.labels.team=red" in node.labels())
    assert {
        "k8s:app=web",
        "k8s:io.kubernetes.pod.namespace=shop",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=clerk",
    } <= node.labels()


async def test_relabelled_pods_and_namespaces(node: Node) -> None:
    node.pod("web", metadata={"labels": {"app": "web"}})
    before = (await node.add("web")).endpoint.identity
    node.change("web", metadata={"labels": {"app": "db"}})
    await until(lambda: "k8s:app=db" in node.labels())
    (record,) = node.bench.manager.endpoints.values()
    assert record.endpoint.identity != before
    node.store.write(place("/api/v1/namespaces/shop"), {"metadata": {"labels": {"team": "blue"}}}, merge=True)
    await until(lambda: "k8s:io.cilium.k8s.namespace.labels.team=blue" in node.labels())
    (record,) = node.bench.manager.endpoints.values()
    rows = node.bench.identities.rows
    await until(lambda: {row.identity for row in rows.values()} == {record.endpoint.identity})


async def test_a_pod_without_labels_has_those_of_its_place(node: Node) -> None:
    node.pod("bare")
    await node.add("bare")
    await until(lambda: "k8s:io.cilium.k8s.namespace.labels.team=red" in node.labels())
    assert not any(text.startswith("k8s:app") for text in node.labels())


async def test_a_static_pod_is_a_pod(node: Node) -> None:
    """What the API server shows of it is a mirror, which may come after the pod was started."""
    adding = asyncio.create_task(node.add("etcd-n1"))
    await asyncio.sleep(0.1)
    assert not adding.done()
    mirror = {"annotations": {"kubernetes.io/config.mirror": "x"}, "labels": {"component": "etcd"}}
    owner = [{"kind": "Node", "name": "n1", "controller": True, "apiVersion": "v1"}]
    node.pod("etcd-n1", metadata={**mirror, "ownerReferences": owner})
    async with asyncio.timeout(5):
        await adding
    assert "k8s:component=etcd" in node.labels()


async def test_terminating_and_completed_pods_keep_what_they_have_until_the_runtime_lets_go(node: Node) -> None:
    node.pod("web", metadata={"labels": {"app": "web"}})
    await node.add("web")
    node.change("web", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    node.change("web", status={"phase": "Succeeded"})
    node.store.delete(place(PODS.format("shop") + "/web"))
    await asyncio.sleep(0.2)
    assert "k8s:app=web" in node.labels(), "its last packets are still its own"
    await node.delete()
    assert not node.bench.manager.endpoints
    await until(lambda: not node.bench.identities.rows)


async def test_pods_of_the_host_network_and_of_other_nodes_are_none_of_ours(node: Node) -> None:
    node.pod("host", spec={"hostNetwork": True}, status={"podIPs": [{"ip": "172.30.0.1"}]})
    node.pod("elsewhere", node="n2")
    node.pod("web")
    await until(lambda: node.bench.pods.get("shop", "web") is not None)
    assert node.bench.pods.get("shop", "elsewhere") is None
    assert not node.bench.identities.rows, "the node's address is the node's"


async def test_a_pod_that_comes_again_under_its_name_is_another_one(node: Node) -> None:
    """A StatefulSet's pod: deleted here, made anew with other labels, before the runtime has let go of the first."""
    node.pod("db-0", metadata={"labels": {"rev": "1"}})
    first = await node.add("db-0", "c1")
    node.store.delete(place(PODS.format("shop") + "/db-0"))
    node.pod("db-0", metadata={"labels": {"rev": "2"}})
    second = await node.add("db-0", "c2")
    await until(lambda: {"k8s:rev=2"} <= set(node.bench.manager.endpoints[second.endpoint.id].labels.texts()))
    assert set(first.endpoint.addresses).isdisjoint(second.endpoint.addresses)
    await node.delete("c1")
    rows = node.bench.identities.rows
    await until(lambda: {row.prefix.network_address for row in rows.values()} == set(second.endpoint.addresses))
    assert set(node.bench.manager.endpoints) == {second.endpoint.id}


async def test_an_address_that_is_used_again_within_a_second(node: Node) -> None:
    """With one address in the pool the next pod gets that of the last one: the row ends with the new owner."""
    node.bench.manager.ipam.set({"": (ipaddress.ip_network("10.9.0.0/30"),)})
    for index in range(20):
        node.pod(f"p{index}", metadata={"labels": {"n": str(index)}})
        record = await node.add(f"p{index}", f"c{index}")
        assert [str(address) for address in record.endpoint.addresses] == ["10.9.0.2"]
        if index < 19:
            node.pod(f"q{index}")
            with pytest.raises(Exhausted):
                await node.add(f"q{index}", f"d{index}")
            await node.delete(f"c{index}")
    rows = node.bench.identities.rows
    await until(lambda: [row.pod for row in rows.values()] == ["p19"])
    assert {row.identity for row in rows.values()} == {record.endpoint.identity}
