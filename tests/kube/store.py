"""What an API server keeps and promises, in memory: versions, history, conditional writes, definitions of kinds.

As the real one does: every change has a version, watches replay history from a version on and end with 410 where it
was compacted, lists come in pages of one moment, writes that name an old version are refused, a status is written
apart, objects of defined kinds are pruned and checked by their schema, and what belongs to a deleted owner goes, too.
"""

from __future__ import annotations

import asyncio
import copy
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from tests.kube.schema import checked

Document = dict[str, Any]
_BUILT_IN = {
    "/api/v1/pods": ("Pod", True),
    "/api/v1/namespaces": ("Namespace", False),
    "/api/v1/nodes": ("Node", False),
    "/api/v1/services": ("Service", True),
    "/api/v1/events": ("Event", True),
    "/api/v1/secrets": ("Secret", True),
    "/apis/certificates.k8s.io/v1/certificatesigningrequests": ("CertificateSigningRequest", False),
    "/apis/discovery.k8s.io/v1/endpointslices": ("EndpointSlice", True),
    "/apis/networking.k8s.io/v1/networkpolicies": ("NetworkPolicy", True),
    "/apis/coordination.k8s.io/v1/leases": ("Lease", True),
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions": ("CustomResourceDefinition", False),
}
_SELECTABLE = {
    "/api/v1/pods": {"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName"}
    | {"spec.hostNetwork", "status.phase", "status.podIP", "status.podIPs", "status.nominatedNodeName"},
    "/api/v1/namespaces": {"status.phase"},
    "/api/v1/nodes": {"spec.unschedulable"},
    "/api/v1/services": {"spec.clusterIP", "spec.type"},
    "/api/v1/secrets": {"type"},
    "/apis/certificates.k8s.io/v1/certificatesigningrequests": {"spec.signerName"},
}
"""Fields that lists of built-in kinds can be narrowed by, besides name and namespace; defined kinds have no others."""
SIGNING_REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True, slots=True)
class Place:
    """A request's path, taken apart."""

    collection: str
    namespace: str
    name: str
    part: str = ""

    @property
    def group(self) -> str:
        words = self.collection.split("/")
        return words[2] if words[1] == "apis" else ""

    @property
    def resource(self) -> str:
        plural = self.collection.rpartition("/")[2]
        return f"{plural}/{self.part}" if self.part else plural


_PATH = re.compile(r"^(/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([^/]+)(?:/([^/]+))?(?:/(status|approval))?$")


def place(path: str) -> Place:
    """Where a path leads; raises `Refused` where to nothing."""
    own = re.match(r"^/api/v1/namespaces(?:/([^/]+))?$", path)
    if own:
        return Place("/api/v1/namespaces", "", own[1] or "")
    found = _PATH.match(path)
    if not found:
        raise Refused(404, "the server could not find the requested resource")
    return Place(f"{found[1]}/{found[3]}", found[2] or "", found[4] or "", found[5] or "")


class Store:
    """All objects, and what happened to them."""

    def __init__(self) -> None:
        self.requester: Document = {"username": "test", "extra": {}}
        """Who makes certificate signing requests."""
        self.version = 1000
        self.compacted = 0
        self.kinds: dict[str, tuple[str, bool]] = dict(_BUILT_IN)
        self.schemas: dict[str, Document] = {}
        self.objects: dict[str, dict[tuple[str, str], Document]] = {}
        self.history: list[tuple[int, str, str, Document]] = []
        self._stirred: set[str] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._lists: dict[str, tuple[list[Document], int]] = {}

    # -- reading ----------------------------------------------------------------------------------------------------

    def get(self, at: Place) -> Document:
        found = self._of(at.collection).get((at.namespace, at.name))
        if found is None:
            raise Refused(404, f'{at.resource} "{at.name}" not found')
        return copy.deepcopy(found)

    def page(self, at: Place, query: dict[str, str]) -> Document:
        """One page; the next one is of the same moment."""
        _check_selector(at, query)
        if token := query.get("continue"):
            if token not in self._lists:
                raise Refused(410, "The provided continue parameter is too old")
            items, version = self._lists.pop(token)
        else:
            items, version = [item for item in self._of(at.collection).values() if _fits(item, at, query)], self.version
        limit = int(query.get("limit") or 0) or len(items)
        metadata: Document = {"resourceVersion": str(version)}
        if query.get("continue") and "metadata.namespace=" in query.get("fieldSelector", ""):
            items = []  # as Kubernetes 1.36 answers: ask for the namespace by path
        if len(items) > limit:
            metadata["continue"] = uuid.uuid4().hex
            self._lists[metadata["continue"]] = (items[limit:], version)
        kind, version_text = self.kinds[at.collection][0], at.collection.strip("/").rpartition("/")[0]
        bare = [{name: value for name, value in item.items() if name not in ("kind", "apiVersion")} for item in items]
        return {
            "kind": f"{kind}List",
            "apiVersion": version_text.removeprefix("apis/").removeprefix("api/"),
            "metadata": metadata,
            "items": bare[:limit],
        }

    async def watch(self, at: Place, query: dict[str, str]) -> AsyncIterator[Document]:
        """Events from a version on, for ever; else bookmarks, of a kind that something ever happened to."""
        self._of(at.collection)
        _check_selector(at, query)
        last = int(query.get("resourceVersion") or 0) or self.version
        if last < self.compacted:
            yield {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
            return
        while at.collection in self.kinds:
            for event in self._since(at, query, last):
                yield event
            last = self.version
            if at.collection in self._stirred:
                bare = {"kind": self.kinds[at.collection][0], "metadata": {"resourceVersion": str(last)}}
                yield {"type": "BOOKMARK", "object": bare}
            if self.version != last:
                continue  # something happened while the reader was slow
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def _since(self, at: Place, query: dict[str, str], last: int) -> Iterator[Document]:
        shown = {key for key, item in self._of(at.collection).items() if _fits(item, at, query)}
        for version, collection, kind, item in self.history:
            if version > last and collection == at.collection:
                key = _key(item)
                if _fits(item, at, query):
                    yield {"type": kind, "object": item}
                elif key in shown or kind == "MODIFIED":  # it fitted before, perhaps
                    yield {"type": "DELETED", "object": item}

    # -- writing ----------------------------------------------------------------------------------------------------

    def create(self, at: Place, document: Document) -> Document:
        document = copy.deepcopy(document)
        metadata = document.setdefault("metadata", {})
        if self.kinds.get(at.collection, ("", False))[1]:
            metadata["namespace"] = at.namespace or metadata.get("namespace") or "default"
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        key = _key(document)
        if key in self._of(at.collection):
            raise Refused(409, f'{at.resource} "{key[1]}" already exists')
        if metadata.get("resourceVersion"):
            raise Refused(422, "metadata.resourceVersion: must not be set when an object is created")
        metadata["uid"], metadata["generation"] = str(uuid.uuid4()), 1
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        document.setdefault("apiVersion", at.collection.strip("/").rpartition("/")[0].partition("/")[2])
        document.setdefault("kind", self.kinds[at.collection][0])
        if at.collection in self.schemas:
            document.pop("status", None)
        if at.collection == SIGNING_REQUESTS:
            # Who asks is what the server knows, whatever the request says.
            document["spec"] = {**document["spec"], **self.requester}
        return self._keep(at.collection, "ADDED", document)

    def write(self, at: Place, document: Document, *, merge: bool) -> Document:
        """Replace or merge; with a version that is not the newest it is refused."""
        before = self.get(at)
        wanted = (document.get("metadata") or {}).get("resourceVersion")
        if wanted and wanted != before["metadata"]["resourceVersion"]:
            raise Refused(409, f'{at.resource} "{at.name}": the object has been modified')
        if not merge and not wanted and at.collection in self.schemas:
            raise Refused(422, "metadata.resourceVersion: must be specified for an update")
        after = _merged(before, document) if merge else copy.deepcopy(document)
        if at.part == "status":
            after = {**before, "status": after.get("status")}
        elif at.part == "approval":
            conditions = (after.get("status") or {}).get("conditions")
            after = {**before, "status": {**(before.get("status") or {}), "conditions": conditions}}
        elif at.collection in self.schemas or at.collection in ("/api/v1/nodes", "/api/v1/services"):
            after = {**after, "status": before["status"]} if "status" in before else _without_status(after)
        generation = before["metadata"].get("generation", 1)
        if at.collection in self.schemas and after.get("spec") != before.get("spec"):
            generation += 1
        after["metadata"] = {**after["metadata"], "uid": before["metadata"]["uid"], "generation": generation}
        same = {**after["metadata"], "resourceVersion": ""} == {**before["metadata"], "resourceVersion": ""}
        if same and {**after, "metadata": 0} == {**before, "metadata": 0}:
            return before  # nothing changed: no event
        return self._keep(at.collection, "MODIFIED", after)

    def delete(self, at: Place) -> Document:
        found = self.get(at)
        del self.objects[at.collection][at.namespace, at.name]
        self._note(at.collection, "DELETED", found)
        if at.collection == DEFINITIONS:
            self._undefine(found)
        for collection, owned in list(self.objects.items()):
            for key, item in list(owned.items()):
                owners = item["metadata"].get("ownerReferences") or ()
                if any(owner.get("uid") == found["metadata"]["uid"] for owner in owners):
                    self.delete(Place(collection, *key))
        return found

    def compact(self) -> None:
        """Forget all history and all lists that were begun."""
        self.history.clear()
        self._lists.clear()
        self.compacted = self.version

    def wake(self) -> None:
        """Let watches look again."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _keep(self, collection: str, kind: str, document: Document) -> Document:
        if collection in self.schemas:
            document = checked(self.schemas[collection], document)
        self._note(collection, kind, document)
        self.objects[collection][_key(document)] = document
        if collection == DEFINITIONS:
            self._define(document)
        return copy.deepcopy(document)

    def _note(self, collection: str, kind: str, document: Document) -> None:
        self.version += 1
        document["metadata"] = {**document["metadata"], "resourceVersion": str(self.version)}
        self._stirred.add(collection)
        self.history.append((self.version, collection, kind, document))
        self.wake()

    def _define(self, definition: Document) -> None:
        spec = definition["spec"]
        for version in spec["versions"]:
            collection = f"/apis/{spec['group']}/{version['name']}/{spec['names']['plural']}"
            self.kinds[collection] = (spec["names"]["kind"], spec["scope"] == "Namespaced")
            self.schemas[collection] = version["schema"]["openAPIV3Schema"]
        ready = [{"type": "Established", "status": "True"}, {"type": "NamesAccepted", "status": "True"}]
        definition.setdefault("status", {"conditions": ready})

    def _undefine(self, definition: Document) -> None:
        spec = definition["spec"]
        for version in spec["versions"]:
            collection = f"/apis/{spec['group']}/{version['name']}/{spec['names']['plural']}"
            for known in (self.kinds, self.schemas, self.objects):
                known.pop(collection, None)  # type: ignore[attr-defined]

    def _of(self, collection: str) -> dict[tuple[str, str], Document]:
        if collection not in self.kinds:
            raise Refused(404, "the server could not find the requested resource")
        return self.objects.setdefault(collection, {})


def _key(document: Document) -> tuple[str, str]:
    return document["metadata"].get("namespace") or "", document["metadata"].get("name") or ""


def _check_selector(at: Place, query: dict[str, str]) -> None:
    known = {"metadata.name", "metadata.namespace", *_SELECTABLE.get(at.collection, ())}
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        if (field := part.partition("=")[0]) not in known:
            raise Refused(400, f"field label not supported: {field}")


def _fits(item: Document, at: Place, query: dict[str, str]) -> bool:
    if at.namespace and item["metadata"].get("namespace") != at.namespace:
        return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, wanted = part.partition("=")
        value: Any = item
        for word in path.split("."):
            value = (value or {}).get(word)
        if str(value or "") != wanted:
            return False
    labels = item["metadata"].get("labels") or {}
    wanted_labels = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
    return wanted_labels.items() <= labels.items()


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def _without_status(document: Document) -> Document:
    return {name: value for name, value in document.items() if name != "status"}
