"""Policies' `Valid` conditions, written back to a server of one object: once, whoever writes, whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from services.agent.calc.engine import Engine
from services.agent.sources.kubernetes import KubernetesSource
from services.agent.sources.kubernetes_status import StatusWriter
from services.common.kube.client import KubeClient
from services.common.kube.resources import CILIUM_POLICIES
from services.common.retry import Backoff
from services.model.objects import Synced

STATUS = "/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies/p/status"
GOOD = {"endpointSelector": {}, "ingress": [{}]}
BAD = {"endpointSelector": {}, "ingress": [{"fromEverywhere": True}]}


class Api:
    """One policy object, as a server keeps it; `meanwhile` is called before each patch is looked at."""

    def __init__(self, spec: Any, conditions: list[Any] | None = None) -> None:
        self.object: dict[str, Any] = {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "p", "namespace": "default", "resourceVersion": "10"},
            "spec": spec,
            "status": {"conditions": conditions or []},
        }
        self.patches = 0
        self.failures: list[int] = []
        self.meanwhile: list[Any] = []
        self._watchers: list[asyncio.Queue[Any]] = []
        one = STATUS.removesuffix("/status")
        self.app = web.Application()
        self.app.router.add_get(CILIUM_POLICIES.path, self._collection)
        self.app.router.add_get(one, self._get)
        self.app.router.add_patch(STATUS, self._patch)

    def touch(self, **fields: Any) -> None:
        """Somebody changes the object."""
        version = str(int(self.object["metadata"]["resourceVersion"]) + 1)
        self.object = {**self.object, **fields, "metadata": {**self.object["metadata"], "resourceVersion": version}}
        for watcher in self._watchers:
            watcher.put_nowait(self.object)

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "10"}, "items": [self.object]})
        response, changes = web.StreamResponse(), asyncio.Queue[Any]()
        await response.prepare(request)
        self._watchers.append(changes)
        while True:
            event = {"type": "MODIFIED", "object": await changes.get()}
            await response.write(json.dumps(event).encode() + b"\n")

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self.object)

    async def _patch(self, request: web.Request) -> web.Response:
        self.patches += 1
        if self.failures:
            return web.json_response({"message": "no"}, status=self.failures.pop(0))
        if self.meanwhile:
            self.meanwhile.pop(0)()
        assert request.content_type == "application/merge-patch+json"
        body = await request.json()
        if body["metadata"]["resourceVersion"] != self.object["metadata"]["resourceVersion"]:
            return web.json_response({"message": "the object has been modified"}, status=409)
        self.touch(status=body["status"])
        return web.json_response(self.object)

    @property
    def conditions(self) -> dict[str, Any]:
        return {each["type"]: each for each in self.object["status"]["conditions"]}


class Agent:
    """Source, engine and writer of one node."""

    def __init__(self, client: KubeClient) -> None:
        backoff = Backoff(initial=0.01, maximum=0.05)
        self.source = KubernetesSource(client, CILIUM_POLICIES, backoff)
        self.engine = Engine("node1", sources=())
        self.engine.apply(Synced("x"))
        self.writer = StatusWriter(client, [self.source], self.engine.policy_verdicts, 0.01, backoff)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.writer.run())
            async for update in self.source.updates():
                self.engine.apply(update)
                self.engine.flush()
                self.writer.changed()


@contextlib.asynccontextmanager
async def serving(api: Api, folder: Path) -> AsyncIterator[KubeClient]:
    """The server on loopback, and a client of it."""
    runner = web.AppRunner(api.app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": f"http://{host}:{port}"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    try:
        async with KubeClient(str(path)) as client:
            yield client
    finally:
        await runner.cleanup()


async def met(condition: Callable[[], bool]) -> None:
    """Wait for it, within a bound."""
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def status_of(api: Api) -> Any:
    return api.conditions.get("Valid", {}).get("status")


async def until(api: Api, status: str, folder: Path, nodes: int = 1, then: Any = None) -> list[Agent]:
    """Run nodes until the condition has this status, and a little longer; `then` is (change, next status)."""
    async with serving(api, folder) as client:
        agents = [Agent(client) for _ in range(nodes)]
        running = [asyncio.create_task(agent.run()) for agent in agents]
        try:
            await met(lambda: bool(status_of(api) == status))
            if then:
                then[0]()
                await met(lambda: bool(status_of(api) == then[1]))
            await asyncio.sleep(0.1)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return agents


async def test_an_accepted_policy_is_valid_and_that_is_written_once(tmp_path: Path) -> None:
    other = {"type": "Seen", "status": "True"}
    api = Api(GOOD, [other])
    await until(api, "True", tmp_path)
    assert api.conditions["Valid"]["reason"] == "Accepted"
    assert api.conditions["Valid"]["lastTransitionTime"].endswith("Z")
    assert api.conditions["Seen"] == other
    assert api.patches == 1


async def test_a_rejected_policy_says_why_and_a_repaired_one_is_valid_again(tmp_path: Path) -> None:
    api = Api(BAD)
    said = []

    def repair() -> None:
        said.append(api.conditions["Valid"]["message"])
        api.touch(spec=GOOD)

    await until(api, "False", tmp_path, then=(repair, "True"))
    assert "spec.ingress[0].fromEverywhere: unknown field" in said[0]
    assert said[0].endswith("(nothing of it is in force)")


async def test_a_rejected_newer_version_says_that_the_older_one_stays(tmp_path: Path) -> None:
    api = Api(GOOD)
    await until(api, "True", tmp_path, then=(lambda: api.touch(spec=BAD), "False"))
    assert "the last accepted version stays in force" in api.conditions["Valid"]["message"]


async def test_many_nodes_write_what_one_would(tmp_path: Path) -> None:
    api = Api(GOOD)
    agents = await until(api, "True", tmp_path, nodes=5)
    assert sum(agent.writer.written for agent in agents) == 1


async def test_a_conflict_is_looked_at_and_tried_again(tmp_path: Path) -> None:
    api = Api(GOOD)
    api.meanwhile = [lambda: api.touch(status={"conditions": [{"type": "Seen", "status": "True"}]})]
    await until(api, "True", tmp_path)
    assert set(api.conditions) == {"Seen", "Valid"}
    assert api.patches == 2


async def test_a_server_that_is_away_or_forbids_is_asked_again(tmp_path: Path) -> None:
    api = Api(GOOD)
    api.failures = [503, 403]
    agents = await until(api, "True", tmp_path)
    assert api.patches == 3
    assert not agents[0].writer.errors


async def test_what_is_there_already_is_not_written(tmp_path: Path) -> None:
    said = {
        "type": "Valid",
        "status": "True",
        "reason": "Accepted",
        "message": "Policy validation succeeded",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    api = Api(GOOD, [said])
    await until(api, "True", tmp_path)
    assert api.conditions["Valid"] == said
    assert api.patches == 0
