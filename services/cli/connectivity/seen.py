"""Was it seen? The relay is asked for the flow that a request must have left, with its verdict and its rule."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import grpc.aio

from services.cli.connect import Servers, explain
from services.cli.connectivity.case import Ask, Seen
from services.common.errors import CiliateError
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel

SECONDS = 5.0
"""How long after the packets a flow may reach the relay."""
_MOST = 2_000


def wanted(ask: Ask, seen: Seen) -> flow_pb2.FlowFilter:
    """The filter that finds the flow by what the request was."""
    found = flow_pb2.FlowFilter(
        source_pod=[f"{ask.source.namespace}/{ask.source.name}"], verdict=[flow_pb2.Verdict.Value(seen.verdict)]
    )
    if seen.pod:
        found.destination_pod.append(f"{ask.source.namespace}/{seen.pod}")
    if seen.service:
        found.destination_service.append(f"{ask.source.namespace}/{seen.service}")
    return found


def matches(flow: flow_pb2.Flow, seen: Seen) -> bool:
    """Whether a flow that passed the filter says what it must."""
    deciders = (flow.egress_allowed_by, flow.ingress_allowed_by, flow.egress_denied_by, flow.ingress_denied_by)
    names = {policy.name for policies in deciders for policy in policies}
    if seen.rule and seen.rule not in names:
        return False
    if seen.http:
        method, _, path = seen.http.partition(" ")
        return flow.l7.http.method == method and flow.l7.http.url.endswith(path)
    return True


class Flows:
    """The relay's flows since a case began."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def missing(self, asks: Sequence[Ask], since: float) -> list[str]:
        """What was not seen of these requests, in words. `since`: seconds since 1970."""
        open_asks = [(ask, ask.seen) for ask in asks if ask.seen is not None]
        deadline = time.monotonic() + SECONDS
        try:
            async with channel(self._servers.relay, self._servers.tls, "relay") as there:
                stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
                while True:
                    open_asks = [pair for pair in open_asks if not await self._seen(stub, *pair, since)]
                    if not open_asks or time.monotonic() > deadline:
                        break
                    await asyncio.sleep(0.2)
        except grpc.aio.AioRpcError as error:
            return [str(explain("relay", self._servers.relay, error))]
        except CiliateError as error:
            return [str(error)]
        return [f"{ask}: no flow {_words(seen)}" for ask, seen in open_asks]

    @staticmethod
    async def _seen(stub: observer_pb2_grpc.ObserverStub, ask: Ask, seen: Seen, since: float) -> bool:
        request = observer_pb2.GetFlowsRequest(number=_MOST, whitelist=[wanted(ask, seen)])
        request.since.FromNanoseconds(int(since * 1e9))
        async for answer in stub.GetFlows(request, timeout=5.0):
            if answer.HasField("flow") and matches(answer.flow, seen):
                return True
        return False


def _words(seen: Seen) -> str:
    parts = [seen.verdict, f"by {seen.rule}" if seen.rule else "", f"to {seen.pod}" if seen.pod else ""]
    parts += [f"to Service {seen.service}" if seen.service else "", seen.http]
    return " ".join(part for part in parts if part)
