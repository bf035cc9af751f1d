"""What Ciliate's own servers say: agents, identity service, relay."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from services.cli import connect, status
from services.cli.inspection import as_item
from services.cli.sysdump import redact
from services.cli.sysdump.collector import Collector, lines
from services.common.pb.agent.v1 import agent_pb2, agent_pb2_grpc
from services.common.pb.identity.v1 import identity_pb2, identity_pb2_grpc
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel

Stub = Any
_LISTS: dict[str, tuple[Callable[[Stub], Awaitable[Any]], str]] = {
    "endpoints": (lambda stub: stub.ListEndpoints(agent_pb2.ListEndpointsRequest()), "endpoints"),
    "policies": (lambda stub: stub.ListPolicies(agent_pb2.ListPoliciesRequest()), "policies"),
    "services": (lambda stub: stub.ListServices(agent_pb2.ListServicesRequest()), "services"),
    "identities": (lambda stub: stub.ListIdentities(agent_pb2.ListIdentitiesRequest()), "identities"),
    "names": (lambda stub: stub.ListNames(agent_pb2.ListNamesRequest()), "names"),
    "egress-gateways": (lambda stub: stub.ListEgressGateways(agent_pb2.ListEgressGatewaysRequest()), "gateways"),
}
_MAPS = [
    (name.removeprefix("MAP_KIND_").lower(), number)
    for name, number in agent_pb2.MapKind.items()
    if not name.endswith("UNSPECIFIED")
]


def collectors(servers: connect.Servers, flows: int) -> Iterable[Collector]:
    """All of them. `flows`: how many of the newest."""
    yield Collector("status.json", lambda: _status(servers))
    yield Collector("identities.jsonl", lambda: _identities(servers))
    yield Collector("flows.jsonl", lambda: _flows(servers, flows))
    yield Collector("relay-nodes.jsonl", lambda: _relay_nodes(servers))
    for node, target in servers.agents:
        folder = f"nodes/{node or 'node'}"
        for name, (call, field) in _LISTS.items():
            yield Collector(f"{folder}/{name}.jsonl", _bind(_agent_list, servers, node, call, field))
        for name, number in _MAPS:
            yield Collector(f"{folder}/maps/{name}.jsonl", _bind(_agent_map, servers, target, number))
        yield Collector(f"{folder}/agent-events.jsonl", _bind(_agent_events, servers, node, flows))


def _bind(work: Callable[..., AsyncIterator[str]], *arguments: Any) -> Callable[[], AsyncIterator[str]]:
    return lambda: work(*arguments)


async def _status(servers: connect.Servers) -> AsyncIterator[str]:
    yield json.dumps(redact.document(await status.collect(servers, "")), indent=2)


async def _identities(servers: connect.Servers) -> AsyncIterator[str]:
    async with channel(servers.identity, servers.tls, "identity") as there:
        stub = identity_pb2_grpc.IdentityServiceStub(there)  # type: ignore[no-untyped-call]
        async for part in _streamed("identity service", servers.identity, stub.List(identity_pb2.ListRequest())):
            yield part


async def _flows(servers: connect.Servers, number: int) -> AsyncIterator[str]:
    async with channel(servers.relay, servers.tls, "relay") as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        call = stub.GetFlows(observer_pb2.GetFlowsRequest(number=number))
        async for part in _streamed("relay", servers.relay, call):
            yield part


async def _relay_nodes(servers: connect.Servers) -> AsyncIterator[str]:
    async with channel(servers.relay, servers.tls, "relay") as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        answer = await connect.calling("relay", servers.relay, stub.GetNodes(observer_pb2.GetNodesRequest()))
        yield lines([as_item(node) for node in answer.nodes])


async def _agent_list(
    servers: connect.Servers, node: str, call: Callable[[Stub], Awaitable[Any]], field: str
) -> AsyncIterator[str]:
    for name, answer in await connect.each_agent(servers, node, call):
        yield lines([as_item(each, node=name) for each in getattr(answer, field)])


async def _agent_map(servers: connect.Servers, target: str, number: int) -> AsyncIterator[str]:
    async with channel(target, servers.tls, "agent") as there:
        stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
        kind: Any = number
        async for part in _streamed("agent", target, stub.DumpMap(agent_pb2.DumpMapRequest(map=kind))):
            yield part


async def _agent_events(servers: connect.Servers, node: str, number: int) -> AsyncIterator[str]:
    target = next(found for name, found in servers.agents if name == node).replace("agent.sock", "hubble.sock")
    async with channel(target, None, "agent") as there:  # plaintext: a socket for root
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        call = stub.GetAgentEvents(observer_pb2.GetAgentEventsRequest(number=number))
        async for part in _streamed("agent", target, call):
            yield part


async def _streamed(what: str, target: str, call: AsyncIterator[Message]) -> AsyncIterator[str]:
    try:
        async for message in call:
            yield lines([as_item(message)])
    except grpc.aio.AioRpcError as error:
        raise connect.explain(what, target, error) from error
