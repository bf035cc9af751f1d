"""Where the suite runs: an API server in memory, and, where CILIATE_TEST_KUBECONFIG names one, a real one.

Between source and server stands a front door that can be made to fail, so that the same failures happen before both.
Each test has a namespace of its own, which goes at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.agent.sources.kubernetes import KubernetesSource
from services.common.errors import CiliateError, Conflict
from services.common.kube.client import KubeClient
from services.common.kube.resources import NAMESPACES, SERVICES, Resource
from services.common.retry import Backoff
from services.model.objects import Deleted, KubeObject, Synced, Upserted
from tests.kube.apiserver import ApiServer, Forward, Memory
from tests.kube.store import Store

KUBECONFIG = "CILIATE_TEST_KUBECONFIG"
ACCOUNT = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
QUICK = Backoff(initial=0.02, maximum=0.1)


class Follower:
    """A source at work: what exists as it told, and everything that it told, in order."""

    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.known: dict[str, KubeObject] = {}
        self.told: list[str] = []
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for update in self.source.updates():
            match update:
                case Upserted(object=thing):
                    self.known[thing.key.name] = thing
                    self.told.append(f"+{thing.key.name}")
                case Deleted(key=key):
                    del self.known[key.name]
                    self.told.append(f"-{key.name}")
                case Synced():
                    self.told.append("synced")
            self._moved.set()

    @property
    def synced(self) -> bool:
        return "synced" in self.told

    async def until(self, check: Callable[[], bool], seconds: float = 15.0) -> None:
        """Wait until what was told is so."""
        async with asyncio.timeout(seconds):
            while not check():
                if self._task.done():
                    self._task.result()
                self._moved.clear()
                try:
                    await asyncio.wait_for(self._moved.wait(), 0.05)
                except TimeoutError:
                    continue

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Cluster:
    """A namespace on a server. `server` is the front door, `api` goes around it."""

    def __init__(self, server: ApiServer, api: KubeClient, client: KubeClient, namespace: str) -> None:
        self.server, self.api, self.client, self.namespace = server, api, client, namespace
        self.followers: list[Follower] = []

    @property
    def faults(self) -> Any:
        return self.server.faults

    @property
    def store(self) -> Store:
        """For what only the server in memory can be made to do."""
        assert isinstance(self.server.backend, Memory)
        return self.server.backend.store

    def follow(self, resource: Resource = SERVICES) -> Follower:
        """A source for one kind, of this namespace alone."""
        narrowed = replace(resource, path=resource.collection_path(self.namespace))
        follower = Follower(KubernetesSource(self.client, narrowed, replace_backoff()))
        self.followers.append(follower)
        return follower

    async def create(self, name: str, resource: Resource = SERVICES, **fields: Any) -> None:
        document = service(name) if resource is SERVICES else pod(name)
        metadata = {**document["metadata"], **fields.pop("metadata", {})}
        document = {**document, **fields, "metadata": metadata}
        await self.api.create(resource.collection_path(self.namespace), document)

    async def change(self, name: str, resource: Resource = SERVICES, **change: Any) -> None:
        await self.api.patch(resource.object_path(name, self.namespace), change)

    async def delete(self, name: str, resource: Resource = SERVICES) -> None:
        await self.api.delete(resource.object_path(name, self.namespace))


def replace_backoff() -> Backoff:
    return Backoff(QUICK.initial, QUICK.maximum)


def service(name: str) -> dict[str, Any]:
    spec = {"clusterIP": "None", "ports": [{"port": 80, "protocol": "TCP"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def pod(name: str) -> dict[str, Any]:
    # A node that does not exist: no kubelet touches it.
    spec = {"nodeName": "ciliate-test", "containers": [{"name": "c", "image": "none"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(params=["in memory", "real"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A namespace of its own on either server."""
    if request.param == "in memory":
        async with ApiServer(Memory(Store()), tmp_path) as server:
            async with KubeClient(server.kubeconfig) as client:
                async for found in _namespaced(server, client, client):
                    yield found
        return
    if not os.environ.get(KUBECONFIG):
        pytest.skip(f"{KUBECONFIG} names no kubeconfig of a real API server")
    async with KubeClient(os.environ[KUBECONFIG]) as api, ApiServer(Forward(api), tmp_path) as server:
        async with KubeClient(server.kubeconfig) as client:
            async for found in _namespaced(server, api, client):
                with contextlib.suppress(Conflict):  # pods need it, and who makes it may come later, or not at all
                    await api.create(f"/api/v1/namespaces/{found.namespace}/serviceaccounts", ACCOUNT)
                yield found


async def _namespaced(server: ApiServer, api: KubeClient, client: KubeClient) -> AsyncIterator[Cluster]:
    namespace = f"ciliate-test-{uuid.uuid4().hex[:8]}"
    await api.create(NAMESPACES.path, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    found = Cluster(server, api, client, namespace)
    try:
        yield found
    finally:
        for follower in found.followers:
            await follower.stop()
        server.faults = type(server.faults)()
        with contextlib.suppress(CiliateError):
            await api.delete(NAMESPACES.object_path(namespace))
