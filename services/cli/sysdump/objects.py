"""What the cluster is told: Kubernetes objects (never Secrets) and our pods' logs; in a sandbox its applied objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import yaml

from services.cli.kube import VERSIONS, Kubernetes
from services.cli.sysdump.collector import Collector, lines

OUR_PODS = "app.kubernetes.io/part-of=ciliate"
LOG_LINES = 20_000


def from_kubernetes(kubernetes: Kubernetes) -> Iterable[Collector]:
    """A file per kind, and the logs of our pods, of the present and the previous container."""
    for kind in VERSIONS:
        yield Collector(f"kubernetes/{kind.lower()}.jsonl", _kind(kubernetes, kind))
    yield Collector("kubernetes/logs.txt", lambda: _logs(kubernetes))


def _kind(kubernetes: Kubernetes, kind: str) -> Callable[[], AsyncIterator[str]]:
    async def collect() -> AsyncIterator[str]:
        for document in await kubernetes.list(kind):
            document["metadata"].pop("managedFields", None)
            yield lines([document])

    return collect


async def _logs(kubernetes: Kubernetes) -> AsyncIterator[str]:
    for pod in await kubernetes.list("Pod", selector=OUR_PODS):
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        for status in (pod.get("status") or {}).get("containerStatuses") or ():
            for previous in (False, True) if status.get("restartCount") else (False,):
                yield f"== {namespace}/{name} {status['name']}{' (previous)' if previous else ''}\n"
                query = [("container", status["name"]), ("tailLines", str(LOG_LINES))]
                query += [("previous", "true")] if previous else []
                yield await kubernetes.text(f"/api/v1/namespaces/{namespace}/pods/{name}/log", query)


def from_folder(folder: Path) -> Iterable[Collector]:
    """The manifests that agents of a sandbox read."""
    yield Collector("objects.jsonl", lambda: _folder(folder))


async def _folder(folder: Path) -> AsyncIterator[str]:
    for path in await asyncio.to_thread(lambda: sorted(folder.glob("*.yaml"))):
        text = await asyncio.to_thread(path.read_text, "utf-8")
        yield lines([yaml.safe_load(text)])
