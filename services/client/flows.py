"""Client of the Observer service (Hubble API, `observer.Observer`), on the relay or on a node."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from services.client.connection import Connection
from services.client.seen import Seen
from services.common.errors import Unavailable
from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2 as pb
from services.common.pb.observer import observer_pb2_grpc
from services.common.pb.relay import relay_pb2

EVERYTHING = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class FlowSeen:
    """A flow. `details` are the record's counters, where they were asked for (`details=True`)."""

    node: str
    time: datetime.datetime
    flow: flow_pb2.Flow
    details: details_pb2.FlowDetails | None = None


@dataclass(frozen=True, slots=True)
class FlowsLost:
    """So many flows are missing here, and where they were lost (`flow.LostEventSource`)."""

    node: str
    count: int
    source: str


@dataclass(frozen=True, slots=True)
class NodesChanged:
    """The answer is with (NODE_CONNECTED) or without (NODE_UNAVAILABLE, ...) the flows of these nodes."""

    state: str
    nodes: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The stream broke off for this reason; it goes on by itself, from where it stood."""

    problem: str


Item = FlowSeen | FlowsLost | NodesChanged


class Flows(Connection):
    """Of a relay, by default; for a node's own socket: `Flows(target, role="agent")`.

    `allow` and `deny` are `flow.FlowFilter` messages: a flow is told that matches any of `allow` (all, if there are
    none) and none of `deny`; inside a filter every field must match. A filter that cannot be read is `Internal` with
    the server's reason, as Hubble's servers answer UNKNOWN.
    """

    def __init__(self, *arguments: Any, role: str = "relay", **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.role = role  # type: ignore[misc] # of the object: the same API is served by two roles

    def stub(self, there: grpc.aio.Channel) -> Any:
        """See `Connection`."""
        return observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]

    async def query(
        self,
        allow: Sequence[flow_pb2.FlowFilter] = (),
        deny: Sequence[flow_pb2.FlowFilter] = (),
        *,
        last: int = 0,
        first: int = 0,
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        details: bool = False,
    ) -> AsyncIterator[Item]:
        """What is stored, oldest first: the newest `last`, the oldest `first`, or all of a span of time (all there is
        where nothing is said). Times carry their zone."""
        number = last or first or (0 if since or until else EVERYTHING)
        request = _request(allow, deny, since, details, number=number, first=bool(first))
        if until:
            request.until.FromDatetime(until)
        async for message in self.stream(lambda stub: stub.GetFlows(request)):
            if item := _item(message):
                yield item

    async def follow(
        self,
        allow: Sequence[flow_pb2.FlowFilter] = (),
        deny: Sequence[flow_pb2.FlowFilter] = (),
        *,
        since: datetime.datetime | None = None,
        details: bool = False,
    ) -> AsyncIterator[Item | Interrupted]:
        """What comes, for ever; from `since` on where it is given.

        When the server goes away the call is made again, from a little before the last flow seen: flows of other nodes
        may come late. Those that were told already are not told twice.
        """
        seen = Seen(datetime.datetime.now(datetime.UTC))
        while True:
            request = _request(allow, deny, since, details, follow=True)
            try:
                async for message in self.stream(lambda stub, request=request: stub.GetFlows(request)):  # type: ignore[misc]
                    item = _item(message)
                    if item is None or (isinstance(item, FlowSeen) and not seen.first_time(item.flow.uuid, item.time)):
                        continue
                    self._backoff.reset()
                    yield item
                problem = Unavailable("the stream ended")
            except Unavailable as error:
                problem = error
            yield Interrupted(str(problem))
            await self._backoff.wait()
            await self.reconnect()
            since = seen.resume()

    async def status(self) -> pb.ServerStatusResponse:
        """How much is held and seen, and on a relay which nodes push."""
        return await self.call(lambda stub, seconds: stub.ServerStatus(pb.ServerStatusRequest(), timeout=seconds))

    async def nodes(self) -> list[pb.Node]:
        """The nodes that push flows to a relay; `Invalid` on a node itself."""
        answer = await self.call(lambda stub, seconds: stub.GetNodes(pb.GetNodesRequest(), timeout=seconds))
        return list(answer.nodes)

    async def namespaces(self) -> list[pb.Namespace]:
        """Namespaces that appear in flows."""
        answer = await self.call(lambda stub, seconds: stub.GetNamespaces(pb.GetNamespacesRequest(), timeout=seconds))
        return list(answer.namespaces)


def _request(
    allow: Sequence[flow_pb2.FlowFilter],
    deny: Sequence[flow_pb2.FlowFilter],
    since: datetime.datetime | None,
    details: bool,
    **how: Any,
) -> pb.GetFlowsRequest:
    request = pb.GetFlowsRequest(whitelist=allow, blacklist=deny, **how)
    if since:
        request.since.FromDatetime(since)
    if details:
        request.extensions.Pack(details_pb2.WantDetails())
    return request


def _item(message: pb.GetFlowsResponse) -> Item | None:
    match message.WhichOneof("response_types"):
        case "flow":
            found = details_pb2.FlowDetails()
            known = message.flow.extensions.Unpack(found)
            when = message.time.ToDatetime(datetime.UTC)
            return FlowSeen(message.node_name, when, message.flow, found if known else None)
        case "lost_events":
            lost = message.lost_events
            return FlowsLost(message.node_name, lost.num_events_lost, flow_pb2.LostEventSource.Name(lost.source))
        case "node_status":
            status = message.node_status
            names = tuple(status.node_names)
            return NodesChanged(relay_pb2.NodeState.Name(status.state_change), names, status.message)
    return None  # a kind of a later version
