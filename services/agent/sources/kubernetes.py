"""Objects from the Kubernetes API: list + watch as three nested generators, each of them trivial.

`_once` (one watch request) is inside `_resuming` (list, then watch after watch from where the last one ended; a 410
lists again) is inside `updates` (whatever fails is tried again, later and later). After every list the difference to
what was told before is sent, so deletions that happened during a gap are not lost and nothing is told twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.agent.sources.decode import decode, key_of
from services.agent.sources.fields import FieldError
from services.agent.sources.kube_client import Gone, KubeClient, error_of
from services.agent.sources.kubernetes_status import Seen
from services.common.errors import CiliateError, Internal, NotFound, Unavailable
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.objects import Deleted, KubeObject, ObjectKey, Synced, Update, Upserted

PAGE = 500
WATCH_SECONDS = 300
SHORT_WATCH_SECONDS = 1.0
"""A watch that ends sooner than this did not serve us: the next one waits, so that a sick server is not hammered."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API serves it. `optional`: its definition may not be installed, which means there are none."""

    path: str
    kind: str
    api_version: str
    optional: bool = False
    field_selector: str = ""
    has_status: bool = False
    """Whether objects have conditions that are written back."""


PODS = Resource("/api/v1/pods", "Pod", "v1")
NAMESPACES = Resource("/api/v1/namespaces", "Namespace", "v1")
NODES = Resource("/api/v1/nodes", "Node", "v1")
SERVICES = Resource("/api/v1/services", "Service", "v1")
SLICES = Resource("/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice", "discovery.k8s.io/v1")
NETWORK_POLICIES = Resource("/apis/networking.k8s.io/v1/networkpolicies", "NetworkPolicy", "networking.k8s.io/v1")
CILIUM_POLICIES = Resource(
    "/apis/cilium.io/v2/ciliumnetworkpolicies", "CiliumNetworkPolicy", "cilium.io/v2", True, has_status=True
)
CILIUM_CLUSTERWIDE_POLICIES = Resource(
    "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies",
    "CiliumClusterwideNetworkPolicy",
    "cilium.io/v2",
    True,
    has_status=True,
)
EGRESS_GATEWAYS = Resource(
    "/apis/cilium.io/v2/ciliumegressgatewaypolicies", "CiliumEgressGatewayPolicy", "cilium.io/v2", True
)
CIDR_GROUPS = Resource("/apis/cilium.io/v2/ciliumcidrgroups", "CiliumCIDRGroup", "cilium.io/v2", True)
RESOURCES = (
    PODS,
    NAMESPACES,
    NODES,
    SERVICES,
    SLICES,
    NETWORK_POLICIES,
    CILIUM_POLICIES,
    CILIUM_CLUSTERWIDE_POLICIES,
    CIDR_GROUPS,
    EGRESS_GATEWAYS,
)


class KubernetesSource:
    """A `Source` for one resource. An object that cannot be read is reported; its last good version stays in force."""

    def __init__(self, client: KubeClient, resource: Resource, backoff: Backoff | None = None) -> None:
        self._client, self._resource = client, resource
        self._backoff = backoff or Backoff(initial=0.2, maximum=30.0)
        self._known: dict[ObjectKey, KubeObject] = {}
        self._errors: dict[str, str] = {}
        self._seen: dict[ObjectKey, Seen] = {}
        self._synced = False
        self._log = get_logger(f"source.{self.name}")

    @property
    def name(self) -> str:
        return f"kubernetes:{self._resource.kind}"

    @property
    def errors(self) -> Mapping[str, str]:
        """Object or "connection" -> what is wrong."""
        return self._errors

    @property
    def seen(self) -> Mapping[ObjectKey, Seen]:
        """What the statuses of objects said last; empty for kinds without conditions."""
        return self._seen

    def path_of(self, key: ObjectKey) -> str:
        """Where one object is served."""
        root, _, plural = self._resource.path.rpartition("/")
        return (
            f"{root}/namespaces/{key.namespace}/{plural}/{key.name}" if key.namespace else f"{root}/{plural}/{key.name}"
        )

    async def updates(self) -> AsyncIterator[Update]:
        """See `Source`. Never gives up: without the API server the last known state stays in force."""
        while True:
            try:
                async for update in self._resuming():
                    yield update
            except Internal:
                raise
            except CiliateError as error:
                self._unhealthy(error)
            await self._backoff.wait()

    async def _resuming(self) -> AsyncIterator[Update]:
        """List, then watch for ever; ends when the server forgot where we were (410) or the resource is not there."""
        try:
            listed, version = await self._list()
        except NotFound:
            if not self._resource.optional:
                raise
            listed, version = {}, ""
        self._healthy()
        for update in self._relisted(listed):
            yield update
        if not self._synced:
            self._synced = True
            yield Synced(self.name)
        while version:
            began = asyncio.get_running_loop().time()
            try:
                async for kind, document in self._once(version):
                    version = document.get("metadata", {}).get("resourceVersion") or version
                    for update in self._event(kind, document):
                        yield update
                self._healthy()
            except Gone:
                self._log.info("watch expired, listing again")
                return
            except Unavailable as error:
                self._unhealthy(error)
            if asyncio.get_running_loop().time() - began < SHORT_WATCH_SECONDS:
                await self._backoff.wait()
            else:
                self._backoff.reset()

    async def _once(self, version: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """(type, object) of one watch request from `version` on."""
        query = self._query() | {"resourceVersion": version, "allowWatchBookmarks": "true"}
        async for event in self._client.watch(self._resource.path, query, WATCH_SECONDS):
            kind, document = event.get("type", ""), event.get("object") or {}
            if kind == "ERROR":
                raise error_of(document.get("code") or 500, f"kubernetes: watch: {document.get('message', 'error')}")
            yield kind, document

    async def _list(self) -> tuple[dict[ObjectKey, dict[str, Any]], str]:
        """Every object, page by page, and the version that a watch goes on from."""
        found: dict[ObjectKey, dict[str, Any]] = {}
        token = ""
        while True:
            query = self._query() | {"limit": str(PAGE)} | ({"continue": token} if token else {})
            page = await self._client.list(self._resource.path, query)
            for item in page.get("items") or ():
                document = self._complete(item)
                if key := self._key(document):
                    found[key] = document
            metadata = page.get("metadata") or {}
            token = metadata.get("continue") or ""
            if not token:
                # Servers that keep no versions answer with none; "0" asks for whatever is there.
                return found, str(metadata.get("resourceVersion") or "0")

    def _query(self) -> dict[str, str]:
        selector = self._resource.field_selector
        return {"fieldSelector": selector} if selector else {}

    def _complete(self, item: dict[str, Any]) -> dict[str, Any]:
        """Lists leave kind and version out of their items."""
        return {"apiVersion": self._resource.api_version, "kind": self._resource.kind, **item}

    def _relisted(self, listed: Mapping[ObjectKey, dict[str, Any]]) -> list[Update]:
        updates: list[Update] = [Deleted(key) for key in self._known if key not in listed]
        self._known = {key: thing for key, thing in self._known.items() if key in listed}
        self._seen = {key: seen for key, seen in self._seen.items() if key in listed}
        self._errors = {where: what for where, what in self._errors.items() if where == "connection"}
        for key, document in listed.items():
            updates += self._upsert(key, document)
        return updates

    def _event(self, kind: str, document: dict[str, Any]) -> list[Update]:
        if kind not in ("ADDED", "MODIFIED", "DELETED"):
            return []  # a bookmark: only its version counts
        document = self._complete(document)
        key = self._key(document)
        if key is None:
            return []
        if kind != "DELETED":
            return self._upsert(key, document)
        self._errors.pop(str(key), None)
        self._seen.pop(key, None)
        return [Deleted(key)] if self._known.pop(key, None) else []

    def _key(self, document: dict[str, Any]) -> ObjectKey | None:
        try:
            return key_of(document)
        except FieldError as error:
            self._errors["unnamed object"] = str(error)
            return None

    def _upsert(self, key: ObjectKey, document: dict[str, Any]) -> list[Update]:
        if self._resource.has_status:
            self._seen[key] = Seen.of(document)
        try:
            thing = decode(document, origin="kubernetes")
        except FieldError as error:
            self._errors[str(key)] = str(error)
            self._log.error("object refused", object=str(key), problem=str(error))
            return []
        self._errors.pop(str(key), None)
        if thing is None or self._known.get(key) == thing:
            return []
        self._known[key] = thing
        return [Upserted(thing)]

    def _unhealthy(self, error: CiliateError) -> None:
        if self._errors.get("connection") != str(error):
            self._log.warning("kubernetes unavailable", problem=str(error))
        self._errors["connection"] = str(error)

    def _healthy(self) -> None:
        if self._errors.pop("connection", None):
            self._log.info("kubernetes available")
