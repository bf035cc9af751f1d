"""Which pods to start and to end next, so that a Deployment changes while it serves. Pure.

A Deployment with the strategy RollingUpdate (the default) never has fewer ready pods than replicas while it changes:
a few new ones come first (maxSurge), and for each that is ready an old one goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.model.objects import ObjectKey
from services.sandbox.manifests import Document

Owner = tuple[str, str]
"""(namespace, Deployment)"""


@dataclass(frozen=True, slots=True)
class Running:
    """A pod that is there."""

    key: ObjectKey
    owner: Owner | None
    ready: bool
    ending: bool


def owner_of(pod: Mapping[str, Any]) -> Owner | None:
    """The Deployment that a pod belongs to."""
    metadata = pod["metadata"]
    revision = (metadata.get("labels") or {}).get("pod-template-hash", "")
    for owner in metadata.get("ownerReferences") or ():
        if owner["kind"] == "ReplicaSet" and owner["name"].endswith(f"-{revision}"):
            return str(metadata["namespace"]), str(owner["name"]).removesuffix(f"-{revision}")
    return None


def next_steps(
    planned: Mapping[ObjectKey, Document], running: Collection[Running], deployments: Mapping[Owner, Document]
) -> tuple[list[ObjectKey], list[ObjectKey]]:
    """(to start, to end) now; asked again whenever a pod became ready or went."""
    there = {pod.key for pod in running}
    by_owner: dict[Owner | None, list[Running]] = {}
    for pod in running:
        by_owner.setdefault(pod.owner, []).append(pod)
    wanted: dict[Owner | None, list[ObjectKey]] = {}
    for key, document in planned.items():
        wanted.setdefault(owner_of(document), []).append(key)
    start: list[ObjectKey] = []
    end: list[ObjectKey] = []
    for owner in {*by_owner, *wanted}:
        old = [pod for pod in by_owner.get(owner, ()) if pod.key not in planned and not pod.ending]
        missing = [key for key in wanted.get(owner, ()) if key not in there]
        if owner is None or owner not in deployments or not old:
            start += missing
            end += [pod.key for pod in old]
            continue
        kept = [pod for pod in by_owner[owner] if pod.key in planned and not pod.ending]
        more, fewer = _roll(deployments[owner], missing, kept, old)
        start += more
        end += fewer
    return sorted(start), sorted(end)


def _roll(
    deployment: Mapping[str, Any], missing: list[ObjectKey], kept: list[Running], old: list[Running]
) -> tuple[list[ObjectKey], list[ObjectKey]]:
    desired = len(missing) + len(kept)
    strategy = deployment["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return [], [pod.key for pod in old]
    surge = max(1, _share((strategy.get("rollingUpdate") or {}).get("maxSurge", 1), desired))
    room = max(0, desired + surge - len(kept) - len(old))
    ready = sum(pod.ready for pod in (*kept, *old))
    # Those that do not serve are no loss.
    order = sorted(old, key=lambda pod: (pod.ready, pod.key))
    end = []
    for pod in order:
        if pod.ready and ready <= desired:
            break
        ready -= pod.ready
        end.append(pod.key)
    return missing[:room], end


def _share(value: Any, count: int) -> int:
    """A number of pods, or a share of them in per cent, rounded up."""
    text = str(value)
    if text.endswith("%") and text[:-1].isdigit():
        return -(-int(text[:-1]) * count // 100)
    return int(text) if text.isdigit() else 1


def deployments_of(objects: Iterable[Document]) -> dict[Owner, Document]:
    """The Deployments that are there."""
    return {
        (str(d["metadata"]["namespace"]), str(d["metadata"]["name"])): d for d in objects if d["kind"] == "Deployment"
    }
