"""The gRPC face: read the request, ask the part that knows, write the answer. Nothing else happens here."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from services.common.errors import Exhausted, NotFound
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc
from services.common.tls import peer_identity
from services.identity.access import require_node, require_operator, require_reader
from services.identity.allocator import Allocator
from services.identity.endpoints import EndpointRegistry
from services.identity.fanout import Fanout
from services.identity.gc import Collector
from services.identity.leases import NodeLeases
from services.identity.metrics import Metrics
from services.identity.mirror import Mirror
from services.identity.requests import (
    matches,
    read_claim,
    read_endpoint,
    read_filter,
    read_known_id,
    read_labels,
    read_node,
    read_prefix,
    reserved_id,
)
from services.identity.wire import identity_message, reserved_identities
from services.model.identity import RESERVED_LABELS, NumericIdentity, is_reserved
from services.model.labels import Labels

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["IdentityService"].full_name
VISIBLE_SECONDS = 1.0
"""How long a change waits to be seen in this replica's own memory; it is durable already."""


class IdentityServicer(identity_pb2_grpc.IdentityServiceServicer):
    """See `proto/identity/v1/identity.proto`. Errors of our tree become status codes in the runner's interceptor.

    `max_changes` requests that change something may be under way at once; more are refused, not queued.
    """

    def __init__(
        self,
        mirror: Mirror,
        allocator: Allocator,
        registry: EndpointRegistry,
        leases: NodeLeases,
        collector: Collector,
        fanout: Fanout,
        metrics: Metrics,
        max_changes: int,
    ) -> None:
        self._mirror, self._allocator, self._registry = mirror, allocator, registry
        self._leases, self._collector, self._fanout, self._metrics = leases, collector, fanout, metrics
        self._max_changes, self._changes = max_changes, 0

    async def Allocate(self, request: pb.AllocateRequest, context: Any) -> pb.AllocateResponse:  # noqa: N802
        """The number of a label set, referenced by the node."""
        with self._change(context, request.node, "allocate") as node:
            labels = read_labels(list(request.labels))
            reserved = reserved_id(labels)
            if reserved is not None:
                return pb.AllocateResponse(identity=pb.Identity(id=reserved, labels=labels.texts()))
            found = await self._allocator.allocate(labels.canonical(), node)
            await self._mirror.reached(found.revision, VISIBLE_SECONDS)
            self._metrics.allocations.labels("new" if found.created else "known").inc()
            identity = pb.Identity(id=found.id, labels=labels.texts())
            return pb.AllocateResponse(identity=identity, created=found.created, claim=found.revision)

    async def Release(self, request: pb.ReleaseRequest, context: Any) -> pb.ReleaseResponse:  # noqa: N802
        """The node uses the identity no more."""
        with self._change(context, request.node, "release") as node:
            if is_reserved(read_known_id(request.id)):
                return pb.ReleaseResponse()
            revision = await self._allocator.release(request.id, node, read_claim(request.claim))
            await self._mirror.reached(revision, VISIBLE_SECONDS)
            return pb.ReleaseResponse(released=bool(revision))

    async def ListReferences(  # noqa: N802
        self, request: pb.ListReferencesRequest, context: Any
    ) -> pb.ListReferencesResponse:
        """What a node holds, as this replica's memory has it."""
        self._read(context)
        claims = self._mirror.state.claims.get(read_node(request.node), {})
        return pb.ListReferencesResponse(
            references=[pb.Reference(id=number, claim=claim) for number, claim in claims.items()]
        )

    async def KeepAlive(self, request: pb.KeepAliveRequest, context: Any) -> pb.KeepAliveResponse:  # noqa: N802
        """The node is alive."""
        with self._change(context, request.node, "keep_alive") as node:
            seconds, lease = await self._leases.keep_alive(node)
            return pb.KeepAliveResponse(ttl_seconds=seconds, lease=lease)

    async def RegisterEndpoint(  # noqa: N802
        self, request: pb.RegisterEndpointRequest, context: Any
    ) -> pb.RegisterEndpointResponse:
        """A row of the address table."""
        with self._change(context, request.endpoint.node, "register"):
            revision = await self._registry.register(read_endpoint(request.endpoint))
            await self._mirror.reached(revision, VISIBLE_SECONDS)
            return pb.RegisterEndpointResponse()

    async def DeregisterEndpoint(  # noqa: N802
        self, request: pb.DeregisterEndpointRequest, context: Any
    ) -> pb.DeregisterEndpointResponse:
        """The row goes."""
        with self._change(context, request.node, "deregister") as node:
            revision = await self._registry.deregister(read_prefix(request.prefix, "prefix"), node)
            await self._mirror.reached(revision, VISIBLE_SECONDS)
            return pb.DeregisterEndpointResponse()

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:  # noqa: N802
        """An identity by number, and the nodes that use it."""
        self._read(context)
        number, state = read_known_id(request.id), self._mirror.state
        reserved = RESERVED_LABELS.get(NumericIdentity(number))
        if reserved is not None:
            return pb.GetResponse(identity=pb.Identity(id=number, labels=reserved.texts()))
        canonical = state.identities.get(number)
        if canonical is None:
            raise NotFound(f"id: there is no identity {number}")
        return pb.GetResponse(
            identity=identity_message(number, canonical), referenced_by=sorted(state.references.get(number, ()))
        )

    async def GetByLabels(self, request: pb.GetByLabelsRequest, context: Any) -> pb.GetByLabelsResponse:  # noqa: N802
        """An identity by its exact labels."""
        self._read(context)
        labels = read_labels(list(request.labels))
        number = reserved_id(labels) or self._mirror.state.by_labels.get(labels.canonical())
        if number is None:
            raise NotFound(f"labels: no identity stands for exactly {', '.join(labels.texts())}")
        return pb.GetByLabelsResponse(identity=pb.Identity(id=number, labels=labels.texts()))

    async def List(self, request: pb.ListRequest, context: Any) -> AsyncIterator[pb.Identity]:  # noqa: N802
        """Identities by number, reserved ones first; those that carry all the labels asked for."""
        self._read(context)
        wanted = read_filter(list(request.labels))
        for identity in reserved_identities():
            if matches(wanted, Labels.parse(identity.labels)):
                yield identity
        for number, canonical in sorted(self._mirror.state.identities.items()):
            if not wanted or matches(wanted, Labels.from_canonical(canonical)):
                yield identity_message(number, canonical)

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        """Identities and rows: a snapshot or what is new since, then every change."""
        self._read(context)
        async for message in self._fanout.stream(request.resume_revision, request.node, request.resume_history):
            yield message

    async def ForgetNode(self, request: pb.ForgetNodeRequest, context: Any) -> pb.ForgetNodeResponse:  # noqa: N802
        """A node's things go."""
        require_operator(peer_identity(context))
        self._mirror.require_loaded()
        await self._leases.end(read_node(request.node))
        return pb.ForgetNodeResponse()

    async def Collect(self, request: pb.CollectRequest, context: Any) -> pb.CollectResponse:  # noqa: N802
        """A sweep now."""
        require_operator(peer_identity(context))
        self._mirror.require_loaded()
        collected = await self._collector.sweep(time.monotonic())
        return pb.CollectResponse(unreferenced=len(self._mirror.state.unreferenced), collected=collected)

    def _read(self, context: Any) -> None:
        require_reader(peer_identity(context))
        self._mirror.require_loaded()

    @contextmanager
    def _change(self, context: Any, node: str, what: str) -> Iterator[str]:
        """Authorise a change for `node` and keep the number of those under way in bounds."""
        require_node(peer_identity(context), read_node(node))
        self._mirror.require_loaded()
        if self._changes >= self._max_changes:
            self._metrics.refused.labels(what).inc()
            raise Exhausted(f"{self._changes} changes are under way, which is the bound; try again shortly")
        self._changes += 1
        try:
            with self._metrics.seconds.labels(what).time():
                yield node
        finally:
            self._changes -= 1
