"""The life of an endpoint: CNI ADD -> interface, identity, enforcement, address row; relabelling; DEL; restarts.

    ADD: pod object -> labels -> identity -> addresses -> veth -> tc programs -> up -> maps written -> record -> answer

Every step can be repeated, and a failure undoes what was done: the runtime tries again. An interface without a map
entry drops everything, so there is no moment in which a pod talks unpoliced.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.agent.endpoints.ipam import Ipam
from services.agent.endpoints.links import Attachment, Links, VethPair
from services.agent.endpoints.numbers import EndpointNumbers
from services.agent.endpoints.pods import PodDirectory
from services.agent.endpoints.records import EndpointRecord, RecordStore
from services.agent.endpoints.references import IdentityReferences
from services.agent.endpoints.registrar import Registrar
from services.agent.endpoints.rows import NodeIdentity, endpoint_rows, pod_rows
from services.agent.endpoints.turns import Turns
from services.common.errors import CiliateError, NotFound
from services.common.log import get_logger
from services.model.addresses import IPAddress
from services.model.identity import Identity
from services.model.objects import (
    EndpointDeleted,
    EndpointUpserted,
    IdentityUpserted,
    LocalEndpoint,
    Pod,
    Synced,
    Update,
)

SOURCE = "endpoints"
POD_WAIT_SECONDS = 5.0
REGISTER_WAIT_SECONDS = 1.0

Publish = Callable[[Sequence[Update]], Awaitable[None]]
"""Hands updates to the calculation and returns when the kernel's maps say so."""


class Programs(Protocol):
    """Puts the datapath's programs on an interface."""

    async def attach(self, ifindexes: Sequence[int]) -> None: ...


@dataclass(frozen=True, slots=True)
class AddRequest:
    """CNI ADD: an attachment and the pod it is for."""

    attachment: Attachment
    namespace: str
    pod: str


class EndpointManager:
    """All endpoints of this node. Calls for one attachment happen one after the other."""

    def __init__(
        self,
        node: NodeIdentity,
        ipam: Ipam,
        records: RecordStore,
        links: Links,
        programs: Programs,
        pods: PodDirectory,
        references: IdentityReferences,
        registrar: Registrar,
        publish: Publish,
    ) -> None:
        self._node, self._ipam, self._records, self._links = node, ipam, records, links
        self._programs, self._pods, self._references = programs, pods, references
        self._registrar, self._publish = registrar, publish
        self._endpoints: dict[int, EndpointRecord] = {}
        self._turns = Turns()
        self._numbers = EndpointNumbers(node.max_endpoints)
        self.labels_changed = asyncio.Event()
        """Labels or ports of some endpoint may be others than its record says."""
        self._log = get_logger("endpoints")

    @property
    def endpoints(self) -> Mapping[int, EndpointRecord]:
        """Endpoint id -> record."""
        return self._endpoints

    def local(self) -> list[LocalEndpoint]:
        """The endpoints, without what is remembered of them."""
        return [record.endpoint for record in self._endpoints.values()]

    def attachments(self) -> list[Attachment]:
        """What runtimes know the endpoints by."""
        return [_attachment(record) for record in self._endpoints.values()]

    @property
    def references(self) -> IdentityReferences:
        """The node's hold on identities."""
        return self._references

    @property
    def ipam(self) -> Ipam:
        """The node's pod addresses."""
        return self._ipam

    # -- restart ---------------------------------------------------------------------------------------------------

    async def restore(self) -> list[Update]:
        """Take over what an earlier run left: records whose interface is there; the rest is cleaned away.

        Returns what to tell the calculation. Identities are those of the records: enforcement goes on as it was, and
        is brought up to date when objects and identity service have answered.
        """
        present = await self._links.ours()
        for record in self._records.load():
            endpoint = record.endpoint
            if present.get(endpoint.ifname) != endpoint.ifindex:
                self._log.warning("endpoint is gone", endpoint_id=endpoint.id, interface=endpoint.ifname)
                self._records.delete(endpoint.id)
                self._references.abandon(endpoint.identity)
                continue
            self._adopt(record)
        known = {record.endpoint.ifname for record in self._endpoints.values()}
        for ifname in present.keys() - known:
            self._log.warning("interface without a record removed", interface=ifname)
            await self._links.delete(ifname)
        self.labels_changed.set()
        updates: list[Update] = []
        for record in self._endpoints.values():
            updates.append(IdentityUpserted(Identity(record.endpoint.identity, record.labels)))
            updates.append(EndpointUpserted(record.endpoint))
        return [*updates, Synced(SOURCE)]

    def _adopt(self, record: EndpointRecord) -> None:
        endpoint = record.endpoint
        self._endpoints[endpoint.id] = record
        self._numbers.hold(endpoint.id)
        self._ipam.hold(endpoint.addresses)
        self._references.adopt(Identity(endpoint.identity, record.labels))
        self._registrar.put(endpoint_rows(self._node, endpoint))

    async def attach_all(self) -> None:
        """Put the present programs on every endpoint's interface: replaced atomically, no packet is missed."""
        try:
            await self._programs.attach([record.endpoint.ifindex for record in self._endpoints.values()])
        except NotFound:
            # A pod is going at this moment: the others are not to wait for that.
            for record in self._endpoints.values():
                try:
                    await self._programs.attach([record.endpoint.ifindex])
                except NotFound as error:
                    self._log.warning("the pod's interface is gone", pod=record.endpoint.pod, problem=str(error))

    # -- CNI -------------------------------------------------------------------------------------------------------

    async def add(self, request: AddRequest) -> EndpointRecord:
        """Attach a pod; doing it twice gives the same answer. Raises errors of the tree, having undone everything."""
        async with self._turns.of(request.attachment.key):
            known = self._find(request.attachment)
            if known is not None:
                try:
                    await self._links.check(known.endpoint)
                    return known
                except CiliateError:
                    await self._remove(known)
            pod = await self._pods.wait_for(request.namespace, request.pod, POD_WAIT_SECONDS)
            labels = self._pods.labels(pod)
            identity = await self._references.acquire(labels)
            try:
                return await self._build(request, identity, pod)
            except BaseException:
                await self._references.release(labels)
                raise

    async def _build(self, request: AddRequest, identity: Identity, pod: Pod) -> EndpointRecord:
        async with contextlib.AsyncExitStack() as undo:
            number = self._numbers.take()
            undo.callback(self._numbers.free, number)
            addresses = self._ipam.allocate(self._pods.pool(pod))
            undo.callback(self._ipam.release, addresses)
            # The cluster is told while the interface is made: neither needs the other.
            rows = pod_rows(self._node, addresses, identity.id, pod, pod.workload)
            self._registrar.put(rows)
            undo.callback(self._registrar.remove, [row.prefix for row in rows])
            veth = await self._links.create(request.attachment, addresses)
            undo.push_async_callback(self._links.delete, veth.ifname)
            await self._programs.attach([veth.ifindex])
            await self._links.start(veth, addresses)
            record = EndpointRecord(_describe(number, request, veth, addresses, identity, pod), identity.labels)
            self._endpoints[number] = record
            undo.callback(self._endpoints.pop, number)
            undo.push_async_callback(self._publish, [EndpointDeleted(number)])
            await self._publish([IdentityUpserted(identity), EndpointUpserted(record.endpoint)])
            await self._registrar.settled([row.prefix for row in rows], REGISTER_WAIT_SECONDS)
            self._records.save(record)
            undo.pop_all()
        self._log.info("endpoint added", endpoint_id=number, pod=f"{request.namespace}/{request.pod}")
        self.labels_changed.set()  # labels may have changed while it was built
        return record

    async def delete(self, attachment: Attachment) -> None:
        """Detach; what is gone already is no error."""
        async with self._turns.of(attachment.key):
            record = self._find(attachment)
            if record is not None:
                await self._remove(record)
            else:
                await self._links.delete(attachment.host_ifname)

    async def check(self, attachment: Attachment) -> EndpointRecord:
        """Whether an attachment is in place; raises `NotFound` naming what is missing."""
        record = self._find(attachment)
        if record is None:
            raise NotFound(f"container {attachment.container_id} has no interface {attachment.ifname} from this agent")
        await self._links.check(record.endpoint)
        return record

    async def _remove(self, record: EndpointRecord) -> None:
        endpoint = record.endpoint
        # The interface first: once it is gone nothing can be sent, whatever the maps say.
        await self._links.delete(endpoint.ifname)
        self._registrar.remove([row.prefix for row in endpoint_rows(self._node, endpoint)])
        self._records.delete(endpoint.id)
        self._endpoints.pop(endpoint.id, None)
        await self._publish([EndpointDeleted(endpoint.id)])
        await self._references.release(record.labels)
        self._ipam.release(endpoint.addresses)
        self._numbers.free(endpoint.id)
        self._log.info("endpoint removed", endpoint_id=endpoint.id, pod=f"{endpoint.namespace}/{endpoint.pod}")

    # -- changes ---------------------------------------------------------------------------------------------------

    def observe(self, update: Update) -> None:
        """Every update of the other sources passes here; cheap."""
        self._registrar.observe(update)
        if self._pods.observe(update):
            self.labels_changed.set()

    async def change(
        self, number: int, decide: Callable[[EndpointRecord], Awaitable[tuple[EndpointRecord, Identity] | None]]
    ) -> None:
        """Replace an endpoint's identity or ports by what `decide` says, with nobody else at it meanwhile."""
        record = self._endpoints.get(number)
        if record is None:
            return
        async with self._turns.of(record.attachment):
            record = self._endpoints.get(number)
            decided = await decide(record) if record else None
            if record is None or decided is None:
                return
            after, identity = decided
            self._endpoints[number] = after
            self._records.save(after)
            self._registrar.put(endpoint_rows(self._node, after.endpoint))
            await self._publish([IdentityUpserted(identity), EndpointUpserted(after.endpoint)])
            if after.labels != record.labels:
                await self._references.release(record.labels)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _find(self, attachment: Attachment) -> EndpointRecord | None:
        return next((record for record in self._endpoints.values() if record.attachment == attachment.key), None)


def _attachment(record: EndpointRecord) -> Attachment:
    endpoint = record.endpoint
    return Attachment(endpoint.container_id, endpoint.netns, endpoint.peer_ifname)


def _describe(
    number: int,
    request: AddRequest,
    veth: VethPair,
    addresses: tuple[IPAddress, ...],
    identity: Identity,
    pod: Pod,
) -> LocalEndpoint:
    return LocalEndpoint(
        id=number,
        namespace=request.namespace,
        pod=request.pod,
        container_id=request.attachment.container_id,
        ifindex=veth.ifindex,
        ifname=veth.ifname,
        mac=veth.mac,
        node_mac=veth.node_mac,
        addresses=addresses,
        identity=identity.id,
        ports=pod.ports,
        netns=request.attachment.netns,
        peer_ifname=request.attachment.ifname,
        workload=pod.workload,
    )
