"""Label and port changes of running pods: a new identity, without a gap in which the pod has none or the wrong one.

In: the manager's `labels_changed`, and identities that got another number because the service had forgotten them. Out:
changed endpoints. Until a new identity is known the old one stays in force.
"""

from __future__ import annotations

import asyncio

from services.agent.endpoints.manager import EndpointManager
from services.agent.endpoints.pods import PodDirectory
from services.agent.endpoints.records import EndpointRecord
from services.agent.endpoints.references import IdentityReferences
from services.common.errors import CiliateError
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.identity import Identity

RENUMBER_PAUSE_SECONDS = 1.0


class Relabeller:
    """Two endless tasks: `run` follows the pods, `renumber` the identity service."""

    def __init__(self, manager: EndpointManager, pods: PodDirectory, references: IdentityReferences) -> None:
        self._manager, self._pods, self._references = manager, pods, references
        self._log = get_logger("endpoint.labels")

    async def run(self) -> None:
        """Follow label and port changes for ever."""
        backoff = Backoff(initial=0.2, maximum=5.0)
        changed = self._manager.labels_changed
        while True:
            await changed.wait()
            changed.clear()
            try:
                for number, record in tuple(self._manager.endpoints.items()):
                    if self._differs(record):
                        await self._manager.change(number, self._by_pod)
                backoff.reset()
            except CiliateError as error:
                self._log.warning("label change waits", problem=str(error))
                changed.set()
                await backoff.wait()

    async def renumber(self, changed: asyncio.Queue[Identity]) -> None:
        """Apply identities whose number changed, for ever."""
        while True:
            identity = await changed.get()

            async def by_service(
                record: EndpointRecord, identity: Identity = identity
            ) -> tuple[EndpointRecord, Identity] | None:
                if record.labels != identity.labels or record.endpoint.identity == identity.id:
                    return None
                return record.with_identity(identity.id, identity.labels), identity

            for number in tuple(self._manager.endpoints):
                try:
                    await self._manager.change(number, by_service)
                except CiliateError as error:
                    self._log.error("new identity not in force yet", endpoint_id=number, problem=str(error))
                    changed.put_nowait(identity)
                    await asyncio.sleep(RENUMBER_PAUSE_SECONDS)

    def _differs(self, record: EndpointRecord) -> bool:
        pod = self._pods.get(record.endpoint.namespace, record.endpoint.pod)
        return pod is not None and (self._pods.labels(pod), pod.ports) != (record.labels, record.endpoint.ports)

    async def _by_pod(self, record: EndpointRecord) -> tuple[EndpointRecord, Identity] | None:
        pod = self._pods.get(record.endpoint.namespace, record.endpoint.pod)
        if pod is None or not self._differs(record):
            return None
        labels = self._pods.labels(pod)
        if labels == record.labels:
            return record.with_ports(pod.ports), Identity(record.endpoint.identity, labels)
        identity = await self._references.acquire(labels)
        self._log.info("endpoint relabelled", endpoint_id=record.endpoint.id, new=identity.id)
        return record.with_identity(identity.id, labels).with_ports(pod.ports), identity
