"""The Observer service on a store: on a node for its own flows, on the relay for everybody's.

What differs between the two is said by arguments: who the nodes are (the relay knows; an agent answers
UNIMPLEMENTED, as Hubble's do), which metadata header carries the version, and who may ask.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grpc
import grpc.aio

from services.common.errors import Denied, Exhausted, Invalid
from services.common.pb.details.v1 import details_pb2
from services.common.pb.observer import observer_pb2 as pb
from services.common.pb.observer import observer_pb2_grpc
from services.common.pb.relay import relay_pb2
from services.common.tls import peer_identity
from services.flows import mask
from services.flows.agent_events import AgentEvents
from services.flows.debug_events import debug_event
from services.flows.entries import NodeRef
from services.flows.filters import FilterError, Filters
from services.flows.follow import Archive, Follower, NoArchive, Now, past
from services.flows.namespaces import Namespaces
from services.flows.render import NANOSECONDS, Renderer, set_time
from services.flows.select import Window
from services.flows.store import FlowStore

HEALTH_NAME = "hubble.server.Observer"
"""The service name that Hubble's clients check before anything else."""
SERVICE_NAME = "observer.Observer"

MAX_STREAMS = 256
"""Concurrent GetFlows calls; each may hold old segments in memory."""
UNAVAILABLE_NAMES = 10
READERS = frozenset({"client", "relay", "operator"})
"""Roles that may read flows; agents push their own and read nobody's."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as the relay knows it."""

    node: NodeRef
    connected: bool
    address: str = ""
    version: str = ""
    uptime_ns: int = 0
    flows: int = 0
    seen: int = 0
    tls: bool = False


class Nodes(Protocol):
    """Who pushes flows here."""

    def statuses(self) -> Sequence[NodeStatus]:
        """Every node known, by name."""
        ...


def may_read(context: Any) -> None:
    """Raises `Denied` for a certificate that is no reader's. Plaintext is the listener's decision."""
    peer = peer_identity(context)
    if peer is not None and peer.role not in READERS:
        raise Denied(f"a certificate of role {peer.role} may not read flows; use one of role client")


class Observer(observer_pb2_grpc.ObserverServicer):
    """`server` is this process's own node name in statuses; `version_text` what `hubble status` prints."""

    def __init__(
        self,
        store: FlowStore,
        server: NodeRef,
        version_text: str,
        version: str,
        nodes: Nodes | None = None,
        authorize: Callable[[Any], None] = may_read,
        now: Now = time.time_ns,
        archive: Archive | None = None,
        events: AgentEvents | None = None,
    ) -> None:
        """`authorize` gets the servicer context and raises `Denied`. `events`: a node's; None on a relay."""
        self._store, self._server, self._nodes = store, server, nodes
        self._version_text, self._version = version_text, version
        self._authorize, self._now = authorize, now
        self._archive, self._events = archive or NoArchive(), events
        self._namespaces = Namespaces(store)
        self._started = now()
        self._streams = 0

    async def GetFlows(  # noqa: N802
        self, request: pb.GetFlowsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GetFlowsResponse]:
        """The past that was asked for, then, for a follower, what comes."""
        await self._greet(context)
        window = _window(request)
        try:
            filters = Filters(request.whitelist, request.blacklist)
            fields = mask.parse(request.field_mask)
        except (FilterError, mask.MaskError) as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        with self._stream_slot():
            for status in self._node_events():
                yield status
            details = request.extensions.Is(details_pb2.WantDetails.DESCRIPTOR)
            async for response in self._flows(window, filters, fields, details=details):
                yield response

    async def _flows(
        self, window: Window, filters: Filters, fields: mask.Tree | None, *, details: bool
    ) -> AsyncIterator[pb.GetFlowsResponse]:
        renderer = Renderer(self._store.dictionaries, self._version, fields, details=details)
        mark = self._store.mark
        if not window.only_new:
            async for response in past(self._store, self._archive, renderer, filters, window):
                yield response
        if window.follow:
            follower = Follower(self._store, self._server, mark, self._now)
            async for response in follower.run(renderer, filters, window.until_ns):
                yield response

    async def ServerStatus(  # noqa: N802
        self, request: pb.ServerStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ServerStatusResponse:
        """How much is held and seen; on a relay also how many nodes push."""
        await self._greet(context)
        now = self._now()
        response = pb.ServerStatusResponse(
            num_flows=self._store.flows,
            max_flows=self._store.capacity,
            seen_flows=self._store.seen,
            uptime_ns=now - self._started,
            version=self._version_text,
            flows_rate=self._store.rate(now),
        )
        if self._nodes is not None:
            statuses = self._nodes.statuses()
            away = [status.node.absolute for status in statuses if not status.connected]
            response.num_connected_nodes.value = len(statuses) - len(away)
            response.num_unavailable_nodes.value = len(away)
            response.unavailable_nodes.extend(away[:UNAVAILABLE_NAMES])
        return response

    async def GetNodes(  # noqa: N802
        self, request: pb.GetNodesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetNodesResponse:
        """The nodes that push flows here; UNIMPLEMENTED on a node itself."""
        await self._greet(context)
        if self._nodes is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "GetNodes not implemented")
        response = pb.GetNodesResponse()
        for status in self._nodes.statuses() if self._nodes else ():
            response.nodes.add(
                name=status.node.absolute,
                version=status.version,
                address=status.address,
                state=relay_pb2.NODE_CONNECTED if status.connected else relay_pb2.NODE_UNAVAILABLE,
                tls=pb.TLS(enabled=status.tls, server_name=status.node.tls_name if status.tls else ""),
                uptime_ns=status.uptime_ns,
                num_flows=status.flows,
                max_flows=self._store.capacity,
                seen_flows=status.seen,
            )
        return response

    async def GetNamespaces(  # noqa: N802
        self, request: pb.GetNamespacesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetNamespacesResponse:
        """Namespaces of the parties of flows of the last hour."""
        await self._greet(context)
        response = pb.GetNamespacesResponse()
        for cluster, namespace in self._namespaces.seen(self._now()):
            response.namespaces.add(cluster=cluster, namespace=namespace)
        return response

    async def GetAgentEvents(  # noqa: N802
        self, request: pb.GetAgentEventsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GetAgentEventsResponse]:
        """What happened on the node; a relay refuses, as Hubble's."""
        await self._greet(context)
        if self._events is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "GetAgentEvents not implemented")
        else:
            with self._stream_slot():
                async for response in self._events.stream(request):
                    yield response

    async def GetDebugEvents(  # noqa: N802
        self, request: pb.GetDebugEventsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GetDebugEventsResponse]:
        """What the datapath did, step by step, as far as its records tell; a relay refuses, as Hubble's."""
        await self._greet(context)
        if self._events is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "GetDebugEvents not implemented")
        with self._stream_slot():
            async for response in self._flows(_window(request), Filters(), None, details=True):
                event = debug_event(response)
                if event is not None:
                    yield event

    async def _greet(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._authorize(context)
        header = "hubble-server-version" if self._nodes is None else "hubble-relay-version"
        await context.send_initial_metadata(((header, self._version),))

    def _node_events(self) -> list[pb.GetFlowsResponse]:
        """Which nodes the answer is from, and which are missing: the first messages of a relay's stream."""
        if self._nodes is None:
            return []
        statuses = self._nodes.statuses()
        found = []
        for state, connected in ((relay_pb2.NODE_CONNECTED, True), (relay_pb2.NODE_UNAVAILABLE, False)):
            names = [status.node.absolute for status in statuses if status.connected is connected]
            if names:
                event = relay_pb2.NodeStatusEvent(state_change=state, node_names=names)
                response = pb.GetFlowsResponse(node_name=self._server.absolute, node_status=event)
                set_time(response.time, self._now())
                found.append(response)
        return found

    @contextmanager
    def _stream_slot(self) -> Iterator[None]:
        if self._streams >= MAX_STREAMS:
            raise Exhausted(f"{MAX_STREAMS} flow streams are open already; try again later")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def _window(request: pb.GetFlowsRequest | pb.GetDebugEventsRequest) -> Window:
    if request.first and request.follow:
        raise Invalid("first cannot be specified with follow")

    def nanoseconds(field: Literal["since", "until"]) -> int | None:
        stamp = getattr(request, field)
        return stamp.seconds * NANOSECONDS + stamp.nanos if request.HasField(field) else None

    return Window(request.number, request.first, request.follow, nanoseconds("since"), nanoseconds("until"))
