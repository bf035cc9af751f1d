"""The suite's Kubernetes side against an HTTP server that behaves as an API server does: apply, list, delete, exec."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import WSMsgType, web

from services.cli.connectivity import objects
from services.cli.connectivity.cluster import Place, on_node
from services.cli.connectivity.in_kubernetes import HOST_NAMESPACE, KubernetesCluster
from services.cli.kube import Kubernetes, exit_status, path_of
from services.common.errors import Denied, Invalid, NotFound, Unavailable

READY = [{"type": "Ready", "status": "True"}]


class ApiServer:
    """Objects by URL path; pods become ready at once; exec answers with what was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.seen: list[str] = []
        for number, taints in enumerate(([], [], [{"effect": "NoSchedule"}]), 1):
            self.objects[f"/api/v1/nodes/node{number}"] = {
                "metadata": {"name": f"node{number}"},
                "spec": {"taints": taints},
                "status": {
                    "conditions": READY,
                    "addresses": [{"type": "InternalIP", "address": f"172.30.0.{number}"}],
                },
            }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.seen.append(f"{request.method} {request.path_qs}")
        if request.headers.get("authorization") != "Bearer secret":
            return web.json_response({"message": "no token"}, status=401)
        if path.endswith("/exec"):
            return await self._exec(request)
        if request.method == "PATCH":
            assert request.headers["Content-Type"] == "application/apply-patch+yaml"
            document = json.loads(await request.text())
            if document["kind"] == "Pod":
                document["status"] = {"conditions": READY, "podIPs": [{"ip": "10.0.0.1"}]}
            self.objects[path] = document
            return web.json_response(document)
        if request.method == "DELETE":
            inside = f"{path.removeprefix('/api/v1')}/"
            gone = {key for key in self.objects if key == path or inside in key}
            for key in gone:
                del self.objects[key]
            return web.json_response({}, status=200 if gone else 404)
        if path in self.objects:
            return web.json_response(self.objects[path])
        if "unknowns" in path:
            return web.json_response({"message": "the server could not find the requested resource"}, status=404)
        kind = path.rpartition("/")[2]
        items = [each for key, each in self.objects.items() if key.startswith(path) or self._all_of(key, kind, path)]
        return web.json_response({"items": items})

    @staticmethod
    def _all_of(key: str, kind: str, path: str) -> bool:
        return "/namespaces/" not in path and key.split("/")[-2] == kind

    @staticmethod
    async def _exec(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await socket.prepare(request)
        words = " ".join(request.query.getall("command"))
        await socket.send_bytes(b"\x01" + words.encode())
        await socket.send_bytes(b"\x02oops")
        code = 7 if "fails" in words else 0
        status: dict[str, Any] = {"status": "Success"}
        if code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            status = {"status": "Failure", "details": {"causes": causes}}
        await socket.send_bytes(b"\x03" + json.dumps(status).encode())
        await socket.close()
        async for message in socket:
            assert message.type is WSMsgType.CLOSE
        return socket


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[ApiServer, str]]:
    """A server and the kubeconfig that leads to it."""
    server = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "it", "user": {"token": "secret"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        yield server, str(path)
    finally:
        await runner.cleanup()


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
