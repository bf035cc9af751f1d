"""The life of an endpoint: CNI ADD -> interface, identity, enforcement, address row; relabelling; DEL; restarts.

    ADD: pod object -> labels -> identity -> addresses -> veth -> tc programs -> maps written -> record -> answer

Every step can be repeated, and a failure undoes what was done: the runtime tries again. An interface without a map
entry drops everything, so there is no moment in which a pod talks unpoliced.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.agent.endpoints.ipam import Ipam
from services.agent.endpoints.links import Attachment, Links, VethPair
from services.agent.endpoints.pods import PodDirectory
from services.agent.endpoints.records import EndpointRecord, RecordStore
from services.agent.endpoints.references import IdentityReferences
from services.agent.endpoints.registrar import Registrar
from services.common.errors import CiliateError, Exhausted, NotFound, Unavailable
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.addresses import IPAddress, IPNetwork
from services.model.identity import Identity
from services.model.objects import (
    EndpointDeleted,
    EndpointUpserted,
    IdentityUpserted,
    IpEntry,
    LocalEndpoint,
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

    async def attach(self, ifindex: int) -> None: ...


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """This node: its name, its address on the overlay, how many endpoints its maps can hold."""

    name: str
    tunnel: IPAddress | None
    max_endpoints: int


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
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._taken: set[int] = set()
        self._last_id = 0
        self._relabel = asyncio.Event()
        self._log = get_logger("endpoints")

    @property
    def endpoints(self) -> Mapping[int, EndpointRecord]:
        """Endpoint id -> record."""
        return self._endpoints

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
                continue
            self._adopt(record)
        known = {record.endpoint.ifname for record in self._endpoints.values()}
        for ifname in present.keys() - known:
            self._log.warning("interface without a record removed", interface=ifname)
            await self._links.delete(ifname)
        self._relabel.set()
        updates: list[Update] = []
        for record in self._endpoints.values():
            updates.append(IdentityUpserted(Identity(record.endpoint.identity, record.labels)))
            updates.append(EndpointUpserted(record.endpoint))
        return [*updates, Synced(SOURCE)]

    def _adopt(self, record: EndpointRecord) -> None:
        endpoint = record.endpoint
        self._endpoints[endpoint.id] = record
        self._taken.add(endpoint.id)
        self._last_id = max(self._last_id, endpoint.id)
        self._ipam.hold(endpoint.addresses)
        self._references.adopt(Identity(endpoint.identity, record.labels))
        self._registrar.put(self._rows(endpoint))

    async def attach_all(self) -> None:
        """Put the present programs on every endpoint's interface: replaced atomically, no packet is missed."""
        for record in tuple(self._endpoints.values()):
            await self._programs.attach(record.endpoint.ifindex)

    # -- CNI -------------------------------------------------------------------------------------------------------

    async def add(self, request: AddRequest) -> EndpointRecord:
        """Attach a pod; doing it twice gives the same answer. Raises errors of the tree, having undone everything."""
        async with self._exclusive(request.attachment):
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
                return await self._build(request, identity)
            except BaseException:
                await self._references.release(labels)
                raise

    async def _build(self, request: AddRequest, identity: Identity) -> EndpointRecord:
        async with contextlib.AsyncExitStack() as undo:
            number = self._take_id()
            undo.callback(self._taken.discard, number)
            addresses = self._ipam.allocate()
            undo.callback(self._ipam.release, addresses)
            veth = await self._links.create(request.attachment, addresses)
            undo.push_async_callback(self._links.delete, veth.ifname)
            await self._programs.attach(veth.ifindex)
            record = EndpointRecord(self._describe(number, request, veth, addresses, identity), identity.labels)
            rows = self._rows(record.endpoint)
            self._registrar.put(rows)
            undo.callback(self._registrar.remove, [row.prefix for row in rows])
            self._endpoints[number] = record
            undo.callback(self._endpoints.pop, number)
            undo.push_async_callback(self._publish, [EndpointDeleted(number)])
            await self._publish([IdentityUpserted(identity), EndpointUpserted(record.endpoint)])
            await self._registrar.settled([row.prefix for row in rows], REGISTER_WAIT_SECONDS)
            self._records.save(record)
            undo.pop_all()
        self._log.info("endpoint added", endpoint_id=number, pod=f"{request.namespace}/{request.pod}")
        self._relabel.set()  # labels may have changed while it was built
        return record

    def _describe(
        self, number: int, request: AddRequest, veth: VethPair, addresses: tuple[IPAddress, ...], identity: Identity
    ) -> LocalEndpoint:
        pod = self._pods.get(request.namespace, request.pod)
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
            ports=pod.ports if pod else (),
            netns=request.attachment.netns,
            peer_ifname=request.attachment.ifname,
        )

    async def delete(self, attachment: Attachment) -> None:
        """Detach; what is gone already is no error."""
        async with self._exclusive(attachment):
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
        self._registrar.remove([row.prefix for row in self._rows(endpoint)])
        self._records.delete(endpoint.id)
        self._endpoints.pop(endpoint.id, None)
        await self._publish([EndpointDeleted(endpoint.id)])
        await self._references.release(record.labels)
        self._ipam.release(endpoint.addresses)
        self._taken.discard(endpoint.id)
        self._log.info("endpoint removed", endpoint_id=endpoint.id, pod=f"{endpoint.namespace}/{endpoint.pod}")

    # -- label changes ---------------------------------------------------------------------------------------------

    def observe(self, update: Update) -> None:
        """Every update of the other sources passes here; cheap."""
        self._registrar.observe(update)
        if self._pods.observe(update):
            self._relabel.set()

    async def run(self) -> None:
        """Follow label and port changes for ever. Until a new identity is known the old one stays in force."""
        backoff = Backoff(initial=0.2, maximum=5.0)
        while True:
            await self._relabel.wait()
            self._relabel.clear()
            try:
                for number in tuple(self._endpoints):
                    await self._refresh(number)
                backoff.reset()
            except Unavailable as error:
                self._log.warning("label change waits", problem=str(error))
                self._relabel.set()
                await backoff.wait()

    async def renumber(self, changed: asyncio.Queue[Identity]) -> None:
        """Apply identities whose number changed because the service had forgotten them."""
        while True:
            identity = await changed.get()
            for record in tuple(self._endpoints.values()):
                if record.labels == identity.labels and record.endpoint.identity != identity.id:
                    await self._replace(record.with_identity(identity.id, identity.labels), identity)

    async def _refresh(self, number: int) -> None:
        record = self._endpoints.get(number)
        pod = self._pods.get(record.endpoint.namespace, record.endpoint.pod) if record else None
        if record is None or pod is None:
            return
        labels = self._pods.labels(pod)
        if (labels, pod.ports) == (record.labels, record.endpoint.ports):
            return
        async with self._exclusive(_attachment(record)):
            if self._endpoints.get(number) != record:
                return
            identity = await self._references.acquire(labels)
            await self._replace(record.with_identity(identity.id, labels).with_ports(pod.ports), identity)
            await self._references.release(record.labels)
            self._log.info("endpoint relabelled", endpoint_id=number, old=record.endpoint.identity, new=identity.id)

    async def _replace(self, record: EndpointRecord, identity: Identity) -> None:
        self._endpoints[record.endpoint.id] = record
        self._records.save(record)
        self._registrar.put(self._rows(record.endpoint))
        await self._publish([IdentityUpserted(identity), EndpointUpserted(record.endpoint)])

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _find(self, attachment: Attachment) -> EndpointRecord | None:
        wanted = (attachment.container_id, attachment.ifname)
        return next((record for record in self._endpoints.values() if record.attachment == wanted), None)

    def _take_id(self) -> int:
        for step in range(1, self._node.max_endpoints):
            number = (self._last_id + step - 1) % (self._node.max_endpoints - 1) + 1
            if number not in self._taken:
                self._taken.add(number)
                self._last_id = number
                return number
        raise Exhausted(f"this node has {len(self._taken)} endpoints, its maps hold no more")

    def _rows(self, endpoint: LocalEndpoint) -> list[IpEntry]:
        return [
            IpEntry(
                prefix=_host_prefix(address),
                identity=endpoint.identity,
                node=self._node.name,
                tunnel=self._node.tunnel,
                namespace=endpoint.namespace,
                pod=endpoint.pod,
            )
            for address in endpoint.addresses
        ]

    @contextlib.asynccontextmanager
    async def _exclusive(self, attachment: Attachment) -> AsyncIterator[None]:
        """One at a time per attachment; the lock lives as long as somebody has or wants it."""
        key = (attachment.container_id, attachment.ifname)
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


def _attachment(record: EndpointRecord) -> Attachment:
    endpoint = record.endpoint
    return Attachment(endpoint.container_id, endpoint.netns, endpoint.peer_ifname)


def _host_prefix(address: IPAddress) -> IPNetwork:
    return ipaddress.ip_network(address)
