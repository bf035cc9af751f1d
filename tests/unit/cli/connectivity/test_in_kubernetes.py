"""The suite's Kubernetes side against an HTTP server that behaves as an API server does: apply, list, delete, exec."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.connectivity import objects
from services.cli.connectivity.cluster import Place, on_node
from services.cli.connectivity.in_kubernetes import HOST_NAMESPACE, KubernetesCluster
from services.cli.kube import Kubernetes, exit_status, path_of
from services.common.errors import Denied, Invalid, NotFound, Unavailable
from tests.unit.cli.api_server import serving


async def test_a_cluster_by_its_api_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, kubeconfig):
        async with KubernetesCluster(kubeconfig, "", None) as facts:
            assert [(node.name, node.addresses) for node in facts.nodes] == [
                ("node1", ("172.30.0.1",)),
                ("node2", ("172.30.0.2",)),
            ], "node3 is tainted"
            cluster = KubernetesCluster(kubeconfig, "", None)
            assert f"/api/v1/namespaces/{HOST_NAMESPACE}/pods/node2" in server.objects
        assert not [key for key in server.objects if HOST_NAMESPACE in key], "the nodes' pods stayed behind"
        async with cluster as _:
            lane = [objects.namespace("lane-1"), *objects.pods("lane-1", "node1", "node2", "PEM")]
            await cluster.apply([*lane, *objects.services("lane-1"), objects.policy("lane-1", "p", {"app": "echo"})])
            assert "/apis/cilium.io/v2/namespaces/lane-1/ciliumnetworkpolicies/p" in server.objects
            await cluster.wait_ready(["lane-1"], 5)
            assert {each["metadata"]["name"] for each in await cluster.get("Pod", "lane-1")} == {
                *objects.CLIENTS,
                *objects.SERVERS,
            }
            done = await cluster.run(Place("pod", "client", "lane-1"), ["curl", "a b"], 5)
            assert done == (0, "curl a b", "oops")
            assert (await cluster.run(on_node("node1"), ["fails"], 5))[0] == 7
            assert any(f"/namespaces/{HOST_NAMESPACE}/pods/node1/exec" in each for each in server.seen)
            with pytest.raises(NotFound, match="no client outside"):
                await cluster.run(Place("outside"), ["curl"], 5)
            await cluster.delete([objects.namespace("lane-1")])
            assert not [key for key in server.objects if "lane-1" in key]
            await cluster.delete([objects.namespace("lane-1")])  # again: a success


async def test_what_can_be_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"--kubeconfig: .*missing"):
        await Kubernetes(str(tmp_path / "missing")).__aenter__()
    async with serving(tmp_path) as (_, kubeconfig):
        async with Kubernetes(kubeconfig) as kubernetes:
            with pytest.raises(NotFound, match="GET /api/v1/namespaces/none"):
                await kubernetes.get("Namespace", "", "none/unknowns")
        text = Path(kubeconfig).read_text(encoding="utf-8")
        Path(kubeconfig).write_text(text.replace("secret", "wrong"), encoding="utf-8")
        async with Kubernetes(kubeconfig) as kubernetes:
            with pytest.raises(Denied, match="no token"):
                await kubernetes.list("Node")
    async with Kubernetes(kubeconfig) as kubernetes:
        with pytest.raises(Unavailable, match=r"the API server at http://127.0.0.1:\d+ does not answer"):
            await kubernetes.list("Node")


def test_paths_and_exit_statuses() -> None:
    assert path_of("NetworkPolicy", "a", "b") == "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies/b"
    assert path_of("CiliumCIDRGroup") == "/apis/cilium.io/v2/ciliumcidrgroups"
    assert exit_status(b"") == 126
    assert exit_status(b"not json") == 126
    assert exit_status(b'{"status": "Failure", "details": {"causes": []}}') == 126
