"""Objects from the Kubernetes API: what `common.kube.reflector` hears, decoded and compared with what was told before.

After every list the difference is sent, so deletions that happened during a gap are not lost and nothing is told
twice. Only decoded objects are kept: a page of documents at a time is all that a list of 100 k takes besides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from services.agent.sources.decode import decode, key_of
from services.agent.sources.fields import FieldError
from services.agent.sources.kubernetes_status import Seen
from services.common.kube import resources
from services.common.kube.client import KubeClient
from services.common.kube.reflector import Begun, Change, Complete, Page, Reflector
from services.common.kube.resources import Resource
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.objects import Deleted, KubeObject, ObjectKey, Synced, Update, Upserted

MAX_ERRORS = 100
"""Objects that cannot be read and are told about one by one."""


def resources_for(node: str) -> tuple[Resource, ...]:
    """What an agent follows. Of pods its own node's alone: what is needed of others (labels, port names, workloads)
    comes with their addresses from the identity service, so an agent's memory grows with its node, not the cluster."""
    return (
        replace(resources.PODS, field_selector=f"spec.nodeName={node}"),
        resources.NAMESPACES,
        resources.NODES,
        resources.SERVICES,
        resources.SLICES,
        resources.NETWORK_POLICIES,
        resources.CILIUM_POLICIES,
        resources.CILIUM_CLUSTERWIDE_POLICIES,
        resources.CIDR_GROUPS,
        resources.EGRESS_GATEWAYS,
    )


class KubernetesSource:
    """A `Source` for one resource. An object that cannot be read is reported; its last good version stays in force."""

    def __init__(self, client: KubeClient, resource: Resource, backoff: Backoff | None = None) -> None:
        self._resource, self._reflector = resource, Reflector(client, resource, backoff)
        self._known: dict[ObjectKey, KubeObject] = {}
        self._fresh: dict[ObjectKey, KubeObject | None] = {}
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
        problem = self._reflector.problem
        return self._errors | ({"connection": problem} if problem else {})

    @property
    def seen(self) -> Mapping[ObjectKey, Seen]:
        """What the statuses of objects said last; empty for kinds without conditions."""
        return self._seen

    def path_of(self, key: ObjectKey) -> str:
        """Where one object is served."""
        return self._resource.object_path(key.name, key.namespace)

    async def updates(self) -> AsyncIterator[Update]:
        """See `Source`. Never gives up: without the API server the last known state stays in force."""
        async for event in self._reflector.events():
            for update in self._told(event):
                yield update

    def _told(self, event: Begun | Page | Complete | Change) -> list[Update]:
        match event:
            case Begun():
                self._fresh, self._errors = {}, {}
            case Page(items=items):
                for document in items:
                    if key := self._key(document):
                        self._fresh[key] = self._read(key, document)
            case Complete():
                return self._relisted()
            case Change(type=kind, document=document):
                return self._changed(kind, document)
        return []

    def _relisted(self) -> list[Update]:
        fresh, self._fresh = self._fresh, {}
        updates: list[Update] = [Deleted(key) for key in self._known if key not in fresh]
        self._seen = {key: seen for key, seen in self._seen.items() if key in fresh}
        known = {}
        for key, thing in fresh.items():
            before = self._known.get(key)
            if thing is not None and thing != before:
                updates.append(Upserted(thing))
            if (kept := thing or before) is not None:
                known[key] = kept
        self._known = known
        if not self._synced:
            self._synced = True
            updates.append(Synced(self.name))
        return updates

    def _changed(self, kind: str, document: dict[str, Any]) -> list[Update]:
        key = self._key(document)
        if key is None:
            return []
        if kind == "DELETED":
            self._errors.pop(str(key), None)
            self._seen.pop(key, None)
            return [Deleted(key)] if self._known.pop(key, None) else []
        thing = self._read(key, document)
        if thing is None or self._known.get(key) == thing:
            return []
        self._known[key] = thing
        return [Upserted(thing)]

    def _key(self, document: dict[str, Any]) -> ObjectKey | None:
        try:
            return key_of(document)
        except FieldError as error:
            self._errors["unnamed object"] = str(error)
            return None

    def _read(self, key: ObjectKey, document: dict[str, Any]) -> KubeObject | None:
        """The object, the one known before where nothing changed; None if it cannot be read."""
        if self._resource.has_status:
            self._seen[key] = Seen.of(document)
        try:
            thing = decode(document, origin="kubernetes")
        except FieldError as error:
            if len(self._errors) < MAX_ERRORS:
                self._errors[str(key)] = str(error)
            self._log.error("object refused", object=str(key), problem=str(error))
            return None
        self._errors.pop(str(key), None)
        before = self._known.get(key)
        return before if thing == before else thing
