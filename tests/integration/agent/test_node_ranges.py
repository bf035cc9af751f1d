"""An agent learns its node's pod ranges from the API: at the start, later, after a restart without the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.agent.sources.node_ranges import NodeRanges
from services.common.kube.client import KubeClient
from services.common.retry import Backoff
from services.operator.definitions import shipped
from tests.kube.apiserver import ApiServer, Memory
from tests.kube.store import Store, place


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    async with ApiServer(Memory(Store()), tmp_path) as server:
        yield server


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[KubeClient]:
    async with KubeClient(server.kubeconfig) as client:
        yield client


def put(server: ApiServer, path: str, name: str, **fields: Any) -> None:
    server.backend.store.create(place(path), {"metadata": {"name": name}, **fields})  # type: ignore[attr-defined]


def change(server: ApiServer, path: str, **fields: Any) -> None:
    server.backend.store.write(place(path), fields, merge=True)  # type: ignore[attr-defined]


def ranges(client: KubeClient, folder: Path, mode: Any) -> NodeRanges:
    return NodeRanges(client, "n1", mode, "default", folder / "kept" / "ranges.json", Backoff(0.01, 0.05))


def texts(found: Any) -> dict[str, list[str]]:
    return {name: [str(network) for network in networks] for name, networks in found.items()}


async def test_out_of_the_node(server: ApiServer, client: KubeClient, tmp_path: Path) -> None:
    source = ranges(client, tmp_path, "kubernetes")
    waiting = asyncio.create_task(source.first())
    put(server, "/api/v1/nodes", "other", spec={"podCIDRs": ["10.9.0.0/24"]})
    put(server, "/api/v1/nodes", "n1")
    await asyncio.sleep(0.05)
    assert not waiting.done(), "nothing was given to it yet"
    change(server, "/api/v1/nodes/n1", spec={"podCIDRs": ["10.0.1.0/24", "fd00:1::/64"]})
    async with asyncio.timeout(5):
        assert texts(await waiting) == {"": ["10.0.1.0/24", "fd00:1::/64"]}


async def test_out_of_the_nodes_own_object_with_more_later(
    server: ApiServer, client: KubeClient, tmp_path: Path
) -> None:
    definition = next(each for each in shipped() if each["spec"]["names"]["kind"] == "CiliateNode")
    source = ranges(client, tmp_path, "cluster-pool")
    waiting = asyncio.create_task(source.first())
    await asyncio.sleep(0.05)
    put(
        server,
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        definition["metadata"]["name"],
        spec=definition["spec"],
    )
    nodes = "/apis/ciliate.io/v1/ciliatenodes"
    put(server, nodes, "n1", spec={"ipam": {"pools": [{"pool": "default", "cidrs": ["10.0.1.0/24"]}]}})
    async with asyncio.timeout(5):
        assert texts(await waiting) == {"": ["10.0.1.0/24"]}
        changes = source.changes()
        following = asyncio.create_task(anext(changes))
        await asyncio.sleep(0.05)
        pools = [{"pool": "default", "cidrs": ["10.0.1.0/24"]}, {"pool": "gold", "cidrs": ["10.7.0.0/28"]}]
        change(server, f"{nodes}/n1", spec={"ipam": {"pools": pools}})
        assert texts(await following) == {"": ["10.0.1.0/24"], "gold": ["10.7.0.0/28"]}
        await changes.aclose()  # type: ignore[attr-defined]


async def test_a_restart_without_the_api_goes_on_with_what_was_told(
    server: ApiServer, client: KubeClient, tmp_path: Path
) -> None:
    put(server, "/api/v1/nodes", "n1", spec={"podCIDR": "10.0.1.0/24"})
    async with asyncio.timeout(5):
        await ranges(client, tmp_path, "kubernetes").first()
        await server.stop()
        again = ranges(client, tmp_path, "kubernetes")
        assert texts(await again.first()) == {"": ["10.0.1.0/24"]}


async def test_what_is_gone_empty_or_absurd_takes_nothing_away(
    server: ApiServer, client: KubeClient, tmp_path: Path
) -> None:
    put(server, "/api/v1/nodes", "n1", spec={"podCIDRs": ["10.0.1.0/24"]})
    source = ranges(client, tmp_path, "kubernetes")
    async with asyncio.timeout(5):
        await source.first()
        following = asyncio.create_task(anext(source.changes()))
        await asyncio.sleep(0.05)
        change(server, "/api/v1/nodes/n1", spec={"podCIDRs": ["nonsense"]})
        change(server, "/api/v1/nodes/n1", spec={"podCIDRs": None})
        server.backend.store.delete(place("/api/v1/nodes/n1"))  # type: ignore[attr-defined]
        put(server, "/api/v1/nodes", "n1", spec={"podCIDRs": ["10.0.2.0/24"]})
        assert texts(await following) == {"": ["10.0.2.0/24"]}
    kept = json.loads((tmp_path / "kept" / "ranges.json").read_text())
    assert kept == {"": ["10.0.2.0/24"]}
