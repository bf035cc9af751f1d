"""The sandbox's API server: applied objects in memory, and the folder of objects that the agents watch.

`ObjectStore` is pure bookkeeping; `ObjectsFolder` is the only thing here that touches the disk.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from services.common.errors import Invalid, NotFound
from services.model.objects import ObjectKey
from services.model.services import ZONE_LABEL
from services.policy.cidr_group import KIND as CIDR_GROUP
from services.policy.egress_gateway import KIND as EGRESS_GATEWAY
from services.policy.read import KINDS
from services.sandbox.controller import ClusterIps, endpoint_slices, plan_pods
from services.sandbox.exposure import with_addresses, with_node_ports
from services.sandbox.images import check_images
from services.sandbox.manifests import Document, Manifest, key_of

_FOLLOWED = frozenset({"Namespace", "Node", "Service", "EndpointSlice", CIDR_GROUP, EGRESS_GATEWAY} | KINDS.keys())
"""Kinds that agents read as they are; Deployments stay here, Pods come from the kubelet with their status."""


class ObjectStore:
    """What has been applied. All or nothing: a call that raises has changed nothing."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._nodes = tuple(nodes)
        self._ips = ClusterIps()
        self.objects: dict[ObjectKey, Document] = {}

    def apply(self, manifests: Sequence[Manifest]) -> list[str]:
        """Create or replace objects; returns one line per object, and per image that a local program stands for.

        Raises `Invalid` (unknown image, unknown namespace, unknown node) or `Conflict` (address taken).
        """
        told, images, fresh = [], [], dict(self.objects)
        for manifest in manifests:
            key, document = manifest.key, manifest.document
            if document["kind"] in {"Pod", "Deployment"}:
                images += [line for line in check_images(document, manifest.origin) if line not in images]
            before = fresh.get(key)
            if document["kind"] == "Service":
                document = with_node_ports(self._with_address(document, before, fresh.values()), before, fresh.values())
                if before is not None and "status" in before:
                    document = {**document, "status": before["status"]}
            if document["kind"] == "Node":
                document = self._with_place(document, before, manifest.origin)
            document = _with_uid(document, before)
            told.append(f"{key} {'created' if before is None else 'unchanged' if before == document else 'configured'}")
            fresh[key] = document
        self._check_namespaces(manifests, fresh)
        plan_pods(fresh.values(), self._nodes)
        self.objects = with_addresses(fresh)
        return told + [f"image {line}" for line in images]

    def _with_address(self, service: Document, before: Document | None, known: Iterable[Document]) -> Document:
        if service["spec"].get("type") == "ExternalName":
            return service
        if before is not None and not service["spec"].get("clusterIP"):
            kept = {name: before["spec"][name] for name in ("clusterIP", "clusterIPs") if name in before["spec"]}
            service = {**service, "spec": {**service["spec"], **kept}}
        return self._ips.assign(service, known)

    def _with_place(self, node: Document, before: Document | None, origin: str) -> Document:
        """A node keeps its addresses and pod ranges; people change its labels."""
        name = node["metadata"]["name"]
        if name not in self._nodes:
            raise Invalid(f"{origin}: metadata.name: there is no node {name!r}; there are: {', '.join(self._nodes)}")
        return {**{part: before[part] for part in ("spec", "status") if part in before}, **node} if before else node

    @staticmethod
    def _check_namespaces(manifests: Sequence[Manifest], known: Mapping[ObjectKey, Document]) -> None:
        for manifest in manifests:
            namespace = manifest.key.namespace
            if namespace and ObjectKey("Namespace", "", namespace) not in known:
                raise Invalid(
                    f"{manifest.origin}: metadata.namespace: there is no namespace {namespace!r}; apply it as well"
                )

    def delete(self, keys: Sequence[ObjectKey]) -> list[str]:
        """Remove objects; a Namespace takes what is in it along. Raises `NotFound` where one is not there."""
        for key in keys:
            if key not in self.objects:
                raise NotFound(f"{key} is not there; see: ciliate sandbox status")
        gone = set(keys) | {
            other for key in keys if key.kind == "Namespace" for other in self.objects if other.namespace == key.name
        }
        self.objects = with_addresses({key: found for key, found in self.objects.items() if key not in gone})
        return [f"{key} deleted" for key in sorted(gone)]

    def planned_pods(self) -> dict[ObjectKey, Document]:
        """The Pods that should run."""
        return plan_pods(self.objects.values(), self._nodes)

    def services(self) -> list[Document]:
        """Applied Services."""
        return [document for document in self.objects.values() if document["kind"] == "Service"]

    def for_agents(self, pods: Iterable[Document]) -> dict[ObjectKey, Document]:
        """Every object that agents should know, given the Pods as they are."""
        pods = list(pods)
        zones = {
            key.name: (document["metadata"].get("labels") or {}).get(ZONE_LABEL, "")
            for key, document in self.objects.items()
            if document["kind"] == "Node"
        }
        found = {key: document for key, document in self.objects.items() if document["kind"] in _FOLLOWED}
        found |= {key_of(pod): pod for pod in pods}
        for service in self.services():
            if service["spec"].get("selector"):
                found |= {key_of(item): item for item in endpoint_slices(service, pods, zones)}
        return found


def _with_uid(document: Document, before: Document | None) -> Document:
    uid = before["metadata"]["uid"] if before else str(uuid.uuid4())
    return {**document, "metadata": {**document["metadata"], "uid": uid}}


class ObjectsFolder:
    """Writes objects as files, one each, atomically; only what changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def publish(self, objects: Mapping[ObjectKey, Document]) -> None:
        """Make the folder hold exactly these objects."""
        wanted = {file_name(key): document for key, document in objects.items()}
        for name, document in wanted.items():
            if self._written.get(name) != document:
                temporary = self._folder / f"{name}.tmp"
                temporary.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
                temporary.rename(self._folder / name)
        for name in self._written.keys() - wanted.keys():
            (self._folder / name).unlink(missing_ok=True)
        self._written = wanted


def file_name(key: ObjectKey) -> str:
    """`service.default.my-webapp-svc.yaml`; names cannot hold '/', so this is safe and unique."""
    return ".".join(part for part in (key.kind.lower(), key.namespace, key.name, "yaml") if part)
