"""The address table -> CiliateEndpoints, or slices of a hundred of them, for people who look with `kubectl`. Pure.

Nothing reads these objects back: they may be late, and a cluster that cannot afford them leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from services.common.kube.resources import CILIATE_ENDPOINT_SLICES, CILIATE_ENDPOINTS
from services.model.objects import IpEntry
from services.operator.writes import Write

PER_SLICE = 100
NAMESPACE_LABEL = "ciliate.io/namespace"

Document = Mapping[str, Any]
LabelsOf = Callable[[int], Iterable[str]]
Pods = Mapping[tuple[str, str], Document]


def endpoints(rows: Iterable[IpEntry]) -> dict[tuple[str, str], dict[str, Any]]:
    """(namespace, pod) -> what there is to say about it."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if not row.pod:
            continue  # a node's own address
        entry = found.setdefault(
            (row.namespace, row.pod), {"identity": {"id": int(row.identity)}, "addresses": [], "node": row.node}
        )
        entry["addresses"].append(str(row.prefix.network_address))
    for entry in found.values():
        if len(entry["addresses"]) > 1:
            entry["addresses"].sort(key=lambda text: (":" in text, text))
    return found


def plan_endpoints(rows: Iterable[IpEntry], labels: LabelsOf, pods: Pods, present: Iterable[Document]) -> list[Write]:
    """One object per pod. It belongs to the pod, so that it goes with it even while no operator runs."""
    wanted = endpoints(rows)
    writes: list[Write] = []
    for document in present:
        metadata = document["metadata"]
        key = metadata.get("namespace") or "", metadata["name"]
        if key not in wanted:
            writes.append(Write("delete", CILIATE_ENDPOINTS, key[1], key[0]))
            continue
        body = _with_labels(wanted.pop(key), labels)
        if any(document.get(name) != value for name, value in body.items()):
            writes.append(Write("patch", CILIATE_ENDPOINTS, key[1], key[0], body))
    for key, body in wanted.items():
        pod = pods.get(key)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            continue  # gone already, going (its namespace may take nothing new), or not seen yet
        owner = {"apiVersion": "v1", "kind": "Pod", "name": key[1], "uid": pod["metadata"].get("uid", "")}
        metadata = {"name": key[1], "namespace": key[0], "ownerReferences": [owner]}
        document = {"apiVersion": CILIATE_ENDPOINTS.api_version, "kind": CILIATE_ENDPOINTS.kind, "metadata": metadata}
        writes.append(Write("create", CILIATE_ENDPOINTS, key[1], key[0], document | _with_labels(body, labels)))
    return writes


def _with_labels(body: Mapping[str, Any], labels: LabelsOf) -> dict[str, Any]:
    number = body["identity"]["id"]
    return {**body, "identity": {"id": number, "labels": sorted(labels(number))}}


def plan_slices(rows: Iterable[IpEntry], present: Iterable[Document]) -> list[Write]:
    """A hundred pods of one namespace per object. A pod stays in the slice that it is in; holes are filled first."""
    wanted = endpoints(rows)
    slices = {document["metadata"]["name"]: document for document in present}
    content: dict[str, list[dict[str, Any]]] = {}
    for name, document in sorted(slices.items()):
        kept = []
        for entry in document.get("endpoints") or ():
            key = entry.get("namespace", ""), entry.get("pod", "")
            if _slice_name(key[0], name) and key in wanted:
                kept.append({"namespace": key[0], "pod": key[1], **wanted.pop(key)})
        content[name] = kept
    for (namespace, pod), body in sorted(wanted.items()):
        name = _roomy(namespace, content)
        content.setdefault(name, []).append({"namespace": namespace, "pod": pod, **body})
    writes = []
    for name, found in sorted(content.items()):
        before = slices.get(name)
        if before is None:
            writes.append(Write("create", CILIATE_ENDPOINT_SLICES, name, document=_slice(name, found)))
        elif not found:
            writes.append(Write("delete", CILIATE_ENDPOINT_SLICES, name))
        elif found != (before.get("endpoints") or []):
            writes.append(Write("patch", CILIATE_ENDPOINT_SLICES, name, document={"endpoints": found}))
    return writes


def _slice_name(namespace: str, name: str) -> bool:
    return name.rpartition("-")[0] == namespace


def _roomy(namespace: str, content: Mapping[str, list[dict[str, Any]]]) -> str:
    number = 0
    while len(content.get(f"{namespace}-{number}", ())) >= PER_SLICE:
        number += 1
    return f"{namespace}-{number}"


def _slice(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": CILIATE_ENDPOINT_SLICES.api_version,
        "kind": CILIATE_ENDPOINT_SLICES.kind,
        "metadata": {"name": name, "labels": {NAMESPACE_LABEL: name.rpartition("-")[0]}},
        "endpoints": found,
    }
