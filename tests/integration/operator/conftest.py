"""Operators against an API server that can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.operator import app
from services.operator.config import Config
from tests.integration.identity.conftest import etcd
from tests.integration.identity.conftest import start as replicas
from tests.kube.apiserver import ApiServer, Memory
from tests.kube.store import Document, Store, place

__all__ = ["etcd", "replicas"]
Start = Callable[..., Awaitable[asyncio.Task[None]]]
TIMES = {"lease_seconds": 7.0, "renew_seconds": 2.5, "retry_seconds": 0.3}


class Cluster:
    """An API server in memory, as its users see it."""

    def __init__(self, server: ApiServer, store: Store) -> None:
        self.server, self.store = server, store

    def put(self, path: str, name: str, namespace: str = "", **fields: Any) -> Document:
        """Create an object."""
        metadata = {"name": name, **fields.pop("metadata", {})} | ({"namespace": namespace} if namespace else {})
        return self.store.create(place(path), {"metadata": metadata, **fields})

    def set(self, path: str, **change: Any) -> Document:
        """Merge into an object."""
        return self.store.write(place(path), change, merge=True)

    def get(self, path: str) -> Document:
        return self.store.get(place(path))

    def all(self, path: str) -> list[Document]:
        return list(self.store.objects.get(path, {}).values())

    def node(self, name: str, **spec: Any) -> Document:
        return self.put("/api/v1/nodes", name, spec=spec)

    def agent(self, node: str, ready: bool = True) -> None:
        """The agent's pod of a node."""
        labels = {"app.kubernetes.io/name": "ciliate-agent"}
        self.put("/api/v1/pods", f"agent-{node}", "kube-system", metadata={"labels": labels}, spec={"nodeName": node})
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        self.set(f"/api/v1/namespaces/kube-system/pods/agent-{node}", status={"conditions": conditions})


async def eventually(check: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What `check` returns once that is true and raises nothing."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                if found := check():
                    return found
            except (KeyError, IndexError, LookupError) as error:
                del error
            except Exception as error:
                if type(error).__name__ != "Refused":
                    raise
            await asyncio.sleep(0.01)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    store = Store()
    async with ApiServer(Memory(store), tmp_path) as server:
        yield Cluster(server, store)


@pytest.fixture
async def start(cluster: Cluster) -> AsyncIterator[Start]:
    """`await start(name, **configuration)`: one more replica."""
    async with AsyncExitStack() as stack:

        async def one(name: str = "one", **settings: Any) -> asyncio.Task[None]:
            config = Config(
                **{"insecure": True, "kubeconfig": cluster.server.kubeconfig, "replica_name": name, **TIMES, **settings}
            )
            task = asyncio.create_task(app.run(config), name=f"operator:{name}")

            async def end() -> None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            stack.push_async_callback(end)
            return task

        yield one
