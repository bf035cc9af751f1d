"""Client of an agent's introspection (`ciliate.agent.v1.AgentService`): what one node knows, computed and wrote into
the kernel. It is served on a unix socket that only root may open; nothing here changes anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from services.client.connection import Connection
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.common.pb.agent.v1 import agent_pb2_grpc


@dataclass(frozen=True, slots=True)
class MapRow:
    """An entry of a kernel map: column -> text."""

    map: str
    cells: dict[str, str]


class Agent(Connection):
    """Answers are the messages of `agent.proto`. Endpoints are named by number, address, "namespace/pod" or "host"."""

    role = "agent"

    def stub(self, there: grpc.aio.Channel) -> Any:
        """See `Connection`."""
        return agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]

    async def status(self) -> pb.StatusResponse:
        """Health of the node and its parts, map usage, losses."""
        return await self.call(lambda stub, seconds: stub.Status(pb.StatusRequest(), timeout=seconds))

    async def endpoints(self) -> list[pb.Endpoint]:
        """Every pod interface of the node, and the node itself where host policies select it."""
        request = pb.ListEndpointsRequest()
        answer = await self.call(lambda stub, seconds: stub.ListEndpoints(request, timeout=seconds))
        return list(answer.endpoints)

    async def endpoint(self, name: str) -> pb.Endpoint:
        """One of them; `NotFound` where there is none."""
        request = pb.GetEndpointRequest(endpoint=name)
        answer: pb.GetEndpointResponse = await self.call(
            lambda stub, seconds: stub.GetEndpoint(request, timeout=seconds)
        )
        return answer.endpoint

    async def policies(self) -> list[pb.Policy]:
        """Policy objects that the agent knows, whom they select and whether they are in force."""
        request = pb.ListPoliciesRequest()
        answer = await self.call(lambda stub, seconds: stub.ListPolicies(request, timeout=seconds))
        return list(answer.policies)

    async def policy(self, endpoint: str) -> pb.GetPolicyResponse:
        """The compiled entries that an endpoint obeys."""
        request = pb.GetPolicyRequest(endpoint=endpoint)
        return await self.call(lambda stub, seconds: stub.GetPolicy(request, timeout=seconds))

    async def explain(self, connection: pb.Connection) -> pb.ExplainPolicyResponse:
        """Why a connection, or a request on one, is treated as it is."""
        request = pb.ExplainPolicyRequest(connection=connection)
        return await self.call(lambda stub, seconds: stub.ExplainPolicy(request, timeout=seconds))

    async def simulate(
        self, documents: Sequence[str], deletions: Sequence[str] = (), flows: Sequence[pb.RecordedFlow] = ()
    ) -> pb.SimulatePolicyResponse:
        """What other policies would change; computed on a copy. `documents` are JSON, `deletions` "Kind ns/name"."""
        request = pb.SimulatePolicyRequest(documents=documents, deletions=deletions, flows=flows)
        return await self.call(lambda stub, seconds: stub.SimulatePolicy(request, timeout=seconds))

    async def services(self) -> list[pb.Service]:
        """Services with their frontends, backends and problems."""
        request = pb.ListServicesRequest()
        answer = await self.call(lambda stub, seconds: stub.ListServices(request, timeout=seconds))
        return list(answer.services)

    async def names(self, pattern: str = "") -> list[pb.LearnedName]:
        """Addresses that pods have learned for DNS names; `pattern` as in matchPattern."""
        request = pb.ListNamesRequest(pattern=pattern)
        answer = await self.call(lambda stub, seconds: stub.ListNames(request, timeout=seconds))
        return list(answer.names)

    async def identities(self) -> list[pb.Identity]:
        """Identities that the node knows, with their scope."""
        request = pb.ListIdentitiesRequest()
        answer = await self.call(lambda stub, seconds: stub.ListIdentities(request, timeout=seconds))
        return list(answer.identities)

    async def map_rows(self, kind: pb.MapKind.ValueType, endpoint: str = "") -> AsyncIterator[MapRow]:
        """Entries of a kernel map, read from the kernel and decoded."""
        request = pb.DumpMapRequest(map=kind, endpoint=endpoint)
        header = pb.DumpMapHeader()
        async for part in self.stream(lambda stub: stub.DumpMap(request)):
            if part.WhichOneof("part") == "header":
                header = part.header
            else:
                yield MapRow(header.map, dict(zip(header.columns, part.row.cells, strict=True)))
