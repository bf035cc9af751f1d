"""Odd objects, very many objects, and how little is kept of each."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from services.agent.sources.kubernetes import KubernetesSource
from services.common.kube.client import OPENED
from services.common.kube.resources import NAMESPACES, NODES, PODS, SERVICES, SLICES, Resource
from services.model.objects import Deleted, Namespace, Pod, Synced, Upserted

OBJECTS = 100_000
PAGE = 500


class Scripted:
    """Pages, then events, then silence."""

    def __init__(self, pages: Any, *events: dict[str, Any]) -> None:
        self._pages, self._events = iter(pages), events

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        return dict(next(self._pages))

    async def watch(self, path: str, query: Mapping[str, str], seconds: int) -> AsyncIterator[dict[str, Any]]:
        yield {"type": OPENED}
        for event in self._events:
            yield event
        await asyncio.Event().wait()


def page(*items: Any, more: bool = False) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": "9", "continue": "more" if more else ""}, "items": list(items)}


async def told(source: KubernetesSource, last: str) -> list[str]:
    found = []
    async with asyncio.timeout(20):
        async for update in source.updates():
            match update:
                case Upserted(object=thing):
                    found.append(f"+{thing.key.name}")
                case Deleted(key=key):
                    found.append(f"-{key.name}")
                case Synced():
                    found.append("synced")
            if found[-1] == last:
                return found
    return found


def good(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {"ports": [{"port": 80}]}}


ODD = [
    {},
    {"metadata": None},
    {"metadata": []},
    {"metadata": {"name": ""}},
    {"metadata": {"name": 7}},
    {"metadata": {"name": "x", "namespace": 7}},
    {"metadata": {"name": "x", "labels": []}},
    {"metadata": {"name": "x", "labels": {"a": 1}}},
    {"metadata": {"name": "x", "labels": {"a": "\ud800"}}},
    {"metadata": {"name": "x"}, "spec": "nonsense"},
    {"metadata": {"name": "x"}, "spec": {"podCIDRs": ["z"], "containers": {}, "ports": {}, "clusterIPs": ["z"]}},
    {"metadata": {"name": "x", "creationTimestamp": "9999-99-99T99:99:99Z"}, "status": 5, "endpoints": 3},
]


@pytest.mark.parametrize("resource", [PODS, NAMESPACES, NODES, SERVICES, SLICES], ids=lambda each: str(each.kind))
async def test_odd_objects_harm_nobody_else(resource: Resource) -> None:
    fine = good("fine") | ({"metadata": {"name": "fine"}} if resource in (NAMESPACES, NODES) else {})
    if resource is SLICES:
        fine["metadata"]["labels"] = {"kubernetes.io/service-name": "fine"}
        fine |= {"addressType": "IPv4", "endpoints": [], "ports": []}
    events = [{"type": kind, "object": odd} for odd in ODD for kind in ("ADDED", "MODIFIED", "DELETED")]
    later = {**fine, "metadata": {**fine["metadata"], "name": "later"}}
    source = KubernetesSource(
        Scripted([page(*ODD, fine)], *events, {"type": "ADDED", "object": later}),  # type: ignore[arg-type]
        resource,
    )
    found = await told(source, "+later")
    assert "+fine" in found
    assert "synced" in found
    assert source.errors, "and what was wrong is told"


def pods(count: int) -> Any:
    """Pages of what an API server says about pods of 500 workloads; much more than we need."""
    for first in range(0, count, PAGE):
        items = [_pod(number) for number in range(first, min(count, first + PAGE))]
        yield page(*items, more=first + PAGE < count)


def _pod(number: int) -> dict[str, Any]:
    app = f"app-{number % 500}"
    return {
        "metadata": {
            "name": f"{app}-{number:x}",
            "namespace": f"team-{number % 50}",
            "uid": f"{number:032x}",
            "resourceVersion": str(number),
            "labels": {"app": app, "tier": "backend", "pod-template-hash": "7c9fd6b5d"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:phase": {}}}}] * 4,
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{app}-7c9fd6b5d", "controller": True}],
        },
        "spec": {
            "nodeName": f"node-{number % 1000}",
            "serviceAccountName": "default",
            "containers": [
                {
                    "name": "c",
                    "image": "i",
                    "env": [{"name": "A", "value": "b" * 200}],
                    "ports": [{"name": "http", "containerPort": 8080}],
                }
            ],
        },
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"}],
        },
    }


def namespaces(count: int, *, less: int = 0) -> Any:
    """Pages of many objects of the simplest kind; every `less`th is missing."""
    numbers = [number for number in range(count) if not less or number % less]
    for first in range(0, len(numbers), PAGE):
        items = [
            {"metadata": {"name": f"ns-{number:x}", "labels": {"team": f"t{number % 50}"}}}
            for number in numbers[first : first + PAGE]
        ]
        yield page(*items, more=first + PAGE < len(numbers))


async def test_a_hundred_thousand_objects_and_the_difference_after_a_gap() -> None:
    expired = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
    pages = [*namespaces(OBJECTS), *namespaces(OBJECTS, less=1000)]
    source = KubernetesSource(Scripted(pages, expired), NAMESPACES)  # type: ignore[arg-type]
    counts = {"told": 0, "gone": 0}
    async with asyncio.timeout(120):
        async for update in source.updates():
            counts["told"] += isinstance(update, Upserted)
            counts["gone"] += isinstance(update, Deleted)
            if counts["gone"] == OBJECTS // 1000:
                break
    assert counts == {"told": OBJECTS, "gone": OBJECTS // 1000}, "what stayed is not told again"


async def test_memory_per_object() -> None:
    """What a pod costs an agent that follows it: equal texts are kept once."""
    number = 5_000
    source = KubernetesSource(Scripted(pods(number)), PODS)  # type: ignore[arg-type]
    gc.collect()
    tracemalloc.start()
    async for update in source.updates():
        if isinstance(update, Synced):
            break
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] / number
    tracemalloc.stop()
    print(f"{kept:.0f} bytes for each")
    assert kept < 1400


async def test_equal_texts_are_one_text() -> None:
    source = KubernetesSource(Scripted(pods(1200)), PODS)  # type: ignore[arg-type]
    found: list[Pod] = []
    async for update in source.updates():
        if isinstance(update, Synced):
            break
        assert isinstance(update, Upserted)
        assert isinstance(update.object, Pod)
        found.append(update.object)
    alike = [each for each in found if each.labels["app"] == "app-7"]
    assert len(alike) > 1
    assert len({id(each.labels) for each in alike}) == 1
    assert len({id(each.namespace) for each in found if each.namespace == "team-3"}) == 1


async def test_a_namespace_says_where_its_pods_get_addresses() -> None:
    document = {"metadata": {"name": "rich", "annotations": {"ipam.ciliate.io/pool": "gold"}}}
    source = KubernetesSource(Scripted([page(document)]), NAMESPACES)  # type: ignore[arg-type]
    first = await anext(source.updates())
    assert isinstance(first, Upserted)
    assert isinstance(first.object, Namespace)
    assert first.object.pool == "gold"
