"""An HTTP server that behaves as an API server does: apply, list, put, delete, logs, exec."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import WSMsgType, web

READY = [{"type": "Ready", "status": "True"}]


class ApiServer:
    """Objects by URL path; pods become ready at once; exec answers with what was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.seen: list[str] = []
        self.pod_status: dict[str, Any] = {}
        self.react: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.handle
        """What answers; a test may put itself in between."""
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
                document["status"] = {"conditions": READY, "podIPs": [{"ip": "10.0.0.1"}], **self.pod_status}
            self.objects[path] = document
            return web.json_response(document)
        if request.method == "PUT":
            document = json.loads(await request.text())
            if document["metadata"].get("resourceVersion") != self.objects[path]["metadata"].get("resourceVersion"):
                return web.json_response({"message": "the object has been modified"}, status=409)
            if "dryRun" not in request.query:
                self.objects[path] = document
            return web.json_response(document)
        if path.endswith("/log"):
            return web.Response(text="error: the log says why\n")
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
        items = [
            each
            for key, each in self.objects.items()
            if key.rpartition("/")[0] == path or self._all_of(key, kind, path)
        ]
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

    async def handle(request: web.Request) -> web.StreamResponse:
        return await server.react(request)

    app.router.add_route("*", "/{tail:.*}", handle)
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
