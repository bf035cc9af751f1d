"""The Kubernetes source against an emulated API server: lists, watches, resumes, relists."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import kmock as km
import pytest

from services.agent.sources.kubernetes import KubernetesSource
from services.common.kube.client import KubeClient
from services.common.kube.resources import CILIUM_POLICIES, PODS, Resource
from services.common.retry import Backoff
from services.model.objects import Deleted, Synced, Update, Upserted


def pod(name: str, version: int = 1, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": labels, "resourceVersion": str(version)},
    }


def bookmark(version: int) -> dict[str, Any]:
    return {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": str(version)}}}


def expired() -> dict[str, Any]:
    return {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}


class Server:
    """Answers lists and watches from scripts; when a watch script is used up, watches stay silent."""

    def __init__(self, kmock: Any) -> None:
        self.lists: list[Any] = []
        self.watches: list[Any] = []
        self.asked: list[str] = []
        kmock[km.action.LIST] << self._list
        kmock[km.action.WATCH] << self._watch

    def _list(self, request: Any) -> Any:
        self.asked.append(f"list {request.params.get('continue', '')}".strip())
        return self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]

    def _watch(self, request: Any) -> Any:
        self.asked.append(f"watch {request.params['resourceVersion']}")
        script = self.watches.pop(0) if self.watches else [...]
        return script if isinstance(script, Exception) else self._stream(script)

    async def _stream(self, script: list[Any]) -> AsyncIterator[Any]:
        yield b""
        for event in script:
            if event is ...:
                await asyncio.Event().wait()
            yield json.dumps(event).encode() + b"\n"


def listing(*items: Any, version: str = "10", token: str = "") -> dict[str, Any]:
    bare = [{name: value for name, value in item.items() if name not in ("kind", "apiVersion")} for item in items]
    return {"metadata": {"resourceVersion": version, "continue": token}, "items": bare}


@pytest.fixture
async def client(kmock: Any, tmp_path: Path) -> AsyncIterator[KubeClient]:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": str(kmock.url).rstrip("/")}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    async with KubeClient(str(path)) as client:
        yield client


async def follow(source: KubernetesSource, enough: Callable[[list[str]], bool]) -> list[str]:
    seen: list[str] = []
    updates = source.updates()
    async with asyncio.timeout(10):
        async for update in updates:
            seen.append(said(update))
            if enough(seen):
                break
    await updates.aclose()  # type: ignore[attr-defined]
    return seen


def said(update: Update) -> str:
    match update:
        case Upserted(object=thing):
            return f"+{thing.key.name}"
        case Deleted(key=key):
            return f"-{key.name}"
        case Synced(source=source):
            return f"synced {source}"
        case other:
            return type(other).__name__


def make(client: KubeClient, resource: Resource = PODS) -> KubernetesSource:
    return KubernetesSource(client, resource, Backoff(initial=0.01, maximum=0.05))


async def test_lists_all_pages_then_watches_from_there(kmock: Any, client: KubeClient) -> None:
    server = Server(kmock)
    server.lists = [listing(pod("a"), token="more"), listing(pod("b"), version="20")]
    server.watches = [[{"type": "ADDED", "object": pod("c", 21)}, {"type": "DELETED", "object": pod("a", 22)}, ...]]
    seen = await follow(make(client), lambda seen: "-a" in seen)
    assert seen == ["+a", "+b", "synced kubernetes:Pod", "+c", "-a"]
    assert server.asked == ["list", "list more", "watch 20"]
    headers = [{name.lower(): value for name, value in request.headers.items()} for request in kmock]
    assert {found["authorization"] for found in headers} == {"Bearer secret"}


async def test_a_watch_that_ends_resumes_where_it_was_bookmarks_included(kmock: Any, client: KubeClient) -> None:
    server = Server(kmock)
    server.lists = [listing(pod("a"))]
    server.watches = [
        [{"type": "ADDED", "object": pod("b", 11)}],
        [bookmark(50)],
        km.KubernetesError(status=500, message="leader changed"),
        [{"type": "ADDED", "object": pod("c", 51)}, ...],
    ]
    seen = await follow(make(client), lambda seen: "+c" in seen)
    assert seen == ["+a", "synced kubernetes:Pod", "+b", "+c"]
    assert server.asked == ["list", "watch 10", "watch 11", "watch 50", "watch 50"]


@pytest.mark.parametrize("gone", [[expired()], km.KubernetesError(status=410, message="Gone")])
async def test_an_expired_watch_lists_again_and_tells_the_difference(kmock: Any, client: KubeClient, gone: Any) -> None:
    server = Server(kmock)
    server.lists = [listing(pod("a"), pod("b")), listing(pod("b"), pod("c"), version="90")]
    server.watches = [gone, [{"type": "MODIFIED", "object": pod("b", 91, app="new")}, ...]]
    seen = await follow(make(client), lambda seen: seen.count("+b") == 2)
    assert seen == ["+a", "+b", "synced kubernetes:Pod", "-a", "+c", "+b"]
    assert server.asked == ["list", "watch 10", "list", "watch 90"]


async def test_without_the_server_it_keeps_trying_and_says_so(kmock: Any, client: KubeClient) -> None:
    server = Server(kmock)
    server.lists = [km.KubernetesError(status=503, message="starting"), listing(pod("a"))]
    source = make(client)
    errors: list[str] = []
    source._reflector._unhealthy = lambda error: errors.append(str(error))  # type: ignore[method-assign]
    assert await follow(source, lambda seen: len(seen) == 2) == ["+a", "synced kubernetes:Pod"]
    assert errors == ["kubernetes: /api/v1/pods: starting (HTTP 503)"]


async def test_a_kind_that_is_not_installed_is_empty(kmock: Any, client: KubeClient) -> None:
    Server(kmock).lists = [km.KubernetesError(status=404, message="no such resource")]
    seen = await follow(make(client, CILIUM_POLICIES), bool)
    assert seen == ["synced kubernetes:CiliumNetworkPolicy"]


async def test_an_object_that_cannot_be_read_keeps_its_last_good_version(kmock: Any, client: KubeClient) -> None:
    server = Server(kmock)
    broken = pod("a", 11) | {"spec": {"containers": {}}}
    server.lists = [listing(pod("a"))]
    server.watches = [
        [{"type": "MODIFIED", "object": broken}, {"type": "ADDED", "object": pod("b", 12)}, ...],
    ]
    source = make(client)
    assert await follow(source, lambda seen: "+b" in seen) == ["+a", "synced kubernetes:Pod", "+b"]
    assert source.errors == {"Pod default/a": "spec.containers: must be a list, not a mapping"}


async def test_the_emulators_own_objects(kmock: Any, client: KubeClient) -> None:
    kmock.resources["v1/pods"].kind = "Pod"
    kmock.objects["v1/pods", "default", "a"] = pod("a")
    updates = make(client).updates()

    async def read(count: int) -> list[str]:
        async with asyncio.timeout(5):
            return [said(await anext(updates)) for _ in range(count)]

    assert await read(2) == ["+a", "synced kubernetes:Pod"]
    reading = asyncio.create_task(read(1))
    await kmock.post("/api/v1/namespaces/default/pods", json=pod("b"))
    assert await reading == ["+b"]
    # The emulator keeps no history: what happens before its watch listens is never told. An added pod may come from
    # its first glance, so let it get there.
    await asyncio.sleep(0.1)
    reading = asyncio.create_task(read(1))
    await kmock.delete("/api/v1/namespaces/default/pods/a")
    assert await reading == ["-a"]
    await updates.aclose()  # type: ignore[attr-defined]


def test_the_library_is_loaded_without_its_models() -> None:
    code = (
        "import sys; from services.common.kube.client import _load_library as load; load(); "
        "print(sum(name.startswith('kubernetes_asyncio.client.models.') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
