"""The introspection API: translate, delegate, nothing else. Served on a unix socket that only root may open."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from services.agent.abi.endpoints import HOST_ENDPOINT
from services.agent.calc.maps import MapName
from services.agent.datapath.maps import PinnedMap
from services.agent.endpoints.records import EndpointRecord
from services.agent.server import dump, questions, views
from services.agent.server.knowledge import Knowledge
from services.agent.server.names import names_view
from services.agent.server.service_view import service_view
from services.agent.server.state import AgentState, process_age, resident_bytes
from services.common.config import Setting
from services.common.errors import Invalid, Unavailable
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.common.pb.agent.v1 import agent_pb2_grpc
from services.model.verdict import Direction

SERVICE_NAME = "ciliate.agent.v1.AgentService"
ROWS_PER_TURN = 512
SERVICES_PER_TURN = 64
MAX_PROBLEMS = 100
"""Of Services in one status: the first ones say enough, and `service list` has all."""

_LAYOUTS = {
    pb.MAP_KIND_POLICY: (dump.POLICY,),
    pb.MAP_KIND_CT: (dump.CONNTRACK,),
    pb.MAP_KIND_IPCACHE: (dump.IPCACHE,),
    pb.MAP_KIND_NAT: (dump.NAT,),
    pb.MAP_KIND_EGRESS: (dump.EGRESS,),
    pb.MAP_KIND_LB: (dump.SERVICES, dump.BACKENDS, dump.REVNAT, dump.SOCKETS),
}
_COUNTED: tuple[MapName, ...] = ("policy", "ipcache", "refined", "services", "backends", "revnat", "endpoint_addrs")


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """`maps` are the pinned maps by name."""

    def __init__(
        self,
        state: AgentState,
        knowledge: Knowledge,
        maps: Mapping[str, PinnedMap],
        pod_ranges: list[str],
        settings: Sequence[Setting] = (),
    ) -> None:
        self._state, self._knowledge, self._maps, self._pod_ranges = state, knowledge, maps, pod_ranges
        self._settings = settings
        self._simulating = asyncio.Semaphore(1)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:  # noqa: N802
        state, engine = self._state, self._knowledge.engine
        pools = self._knowledge.manager.ipam.pools
        statuses = engine.policy_status()
        return pb.StatusResponse(
            node=state.node,
            cluster=state.cluster,
            version=state.version,
            ready=state.ready,
            uptime_seconds=process_age(),
            ready_after_seconds=state.ready_after,
            rss_bytes=resident_bytes(),
            components=[check() for check in state.checks],
            object_errors=[_line(*item) for errors in state.reporting for item in errors().items()],
            policy_errors=[
                *(f"{status.key}: {problem}" for status in statuses for problem in status.problems),
                *state.rule_errors(),
            ],
            pod_ranges=self._pod_ranges,
            addresses_used=sum(pool.used for pool in pools),
            addresses_total=sum(pool.size for pool in pools),
            maps=self._usage(),
            endpoints=len(self._knowledge.manager.endpoints),
            identities=len(list(self._knowledge.known_identities())),
            policies=len(statuses),
            services=engine.load_balancing.count(),
            lost_events=dict(state.lost()),
            counters={name: count for counters in state.counters for name, count in counters().items()},
            policy_pressure=engine.pressure(),
            connections=state.connections(),
            service_problems=[
                f"{namespace}/{name}: {problem}"
                for (namespace, name), problem in itertools.islice(engine.load_balancing.problems(), MAX_PROBLEMS)
            ],
            policy_revision=engine.revision,
            policy_revision_realised=self._knowledge.realised.revision,
            policy_enforcement=engine.mode.value,
            policy_audit=str(engine.audit),
            host_policed=engine.endpoint_policy(HOST_ENDPOINT) is not None,
        )

    def _usage(self) -> list[pb.MapUsage]:
        entries = self._knowledge.map_entries()
        return [
            pb.MapUsage(name=name, entries=entries.get(name, 0), max_entries=self._maps[name].max_entries)
            for name in _COUNTED
        ]

    async def GetConfiguration(  # noqa: N802
        self, request: pb.GetConfigurationRequest, context: Any
    ) -> pb.GetConfigurationResponse:
        return pb.GetConfigurationResponse(values=[pb.ConfigurationValue(**asdict(each)) for each in self._settings])

    async def ListEndpoints(self, request: pb.ListEndpointsRequest, context: Any) -> pb.ListEndpointsResponse:  # noqa: N802
        found = [self._endpoint(record) for _, record in sorted(self._knowledge.manager.endpoints.items())]
        return pb.ListEndpointsResponse(endpoints=[*found, views.host_view(self._knowledge)])

    def _endpoint(self, record: EndpointRecord) -> pb.Endpoint:
        policy = self._knowledge.engine.endpoint_policy(record.endpoint.id)
        return views.endpoint_view(record, policy, self._knowledge.realised)

    def _named(self, text: str) -> pb.Endpoint:
        """The endpoint that people mean; raises `NotFound`."""
        if text in ("host", "reserved:host", str(HOST_ENDPOINT)):
            return views.host_view(self._knowledge)
        return self._endpoint(self._knowledge.endpoint(text))

    async def GetEndpoint(self, request: pb.GetEndpointRequest, context: Any) -> pb.GetEndpointResponse:  # noqa: N802
        return pb.GetEndpointResponse(endpoint=self._named(request.endpoint))

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Any) -> pb.ListPoliciesResponse:  # noqa: N802
        return pb.ListPoliciesResponse(
            policies=views.policies_view(self._knowledge), pressure=self._knowledge.engine.pressure()
        )

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:  # noqa: N802
        engine = self._knowledge.engine
        endpoint = self._named(request.endpoint)
        policy = engine.endpoint_policy(endpoint.id)
        if policy is None and endpoint.host:
            return pb.GetPolicyResponse(endpoint=endpoint)  # no policy selects the node
        if policy is None:
            raise Unavailable(f"endpoint {endpoint.id}: its policy is not computed yet; try again")
        return pb.GetPolicyResponse(
            endpoint=endpoint,
            entries=views.policy_entries(
                engine, policy.policy_id, engine.policy_entries(endpoint.id), engine.rulesets()
            ),
            isolating_ingress=[views.rule_view(ref) for ref in policy.isolating.get(Direction.INGRESS, ())],
            isolating_egress=[views.rule_view(ref) for ref in policy.isolating.get(Direction.EGRESS, ())],
        )

    async def ExplainPolicy(  # noqa: N802
        self, request: pb.ExplainPolicyRequest, context: Any
    ) -> pb.ExplainPolicyResponse:
        return questions.explain(self._knowledge, request.connection)

    async def SimulatePolicy(  # noqa: N802
        self, request: pb.SimulatePolicyRequest, context: Any
    ) -> pb.SimulatePolicyResponse:
        replay = questions.Replay(self._knowledge, request)
        async with self._simulating:
            return await asyncio.to_thread(replay.run)

    async def ListEgressGateways(  # noqa: N802
        self, request: pb.ListEgressGatewaysRequest, context: Any
    ) -> pb.ListEgressGatewaysResponse:
        found = self._knowledge.engine.egress_gateways()
        return pb.ListEgressGatewaysResponse(gateways=[views.egress_view(status) for status in found])

    async def ListServices(self, request: pb.ListServicesRequest, context: Any) -> pb.ListServicesResponse:  # noqa: N802
        known, answer = self._knowledge.engine.load_balancing, pb.ListServicesResponse()
        for count, name in enumerate(known.names(), 1):
            if count % SERVICES_PER_TURN == 0:
                await asyncio.sleep(0)
            answer.services.append(service_view(known.report(name)))
        return answer

    async def ListNames(self, request: pb.ListNamesRequest, context: Any) -> pb.ListNamesResponse:  # noqa: N802
        return names_view(self._knowledge, request.pattern)

    async def ListIdentities(  # noqa: N802
        self, request: pb.ListIdentitiesRequest, context: Any
    ) -> pb.ListIdentitiesResponse:
        records = list(self._knowledge.manager.endpoints.values())
        found = [views.identity_view(number, labels, records) for number, labels in views.reserved_identities()]
        found += [views.identity_view(i.id, i.labels.texts(), records) for i in self._knowledge.known_identities()]
        return pb.ListIdentitiesResponse(identities=found)

    async def DumpMap(self, request: pb.DumpMapRequest, context: Any) -> AsyncIterator[pb.DumpMapResponse]:  # noqa: N802
        layouts = _LAYOUTS.get(request.map)
        if layouts is None:
            raise Invalid("map: choose POLICY, CT, IPCACHE, LB or NAT")
        policy_id = self._policy_id(request)
        for layout in layouts:
            source = self._maps[layout.map]
            header = pb.DumpMapHeader(map=layout.map, columns=layout.columns, max_entries=source.max_entries)
            yield pb.DumpMapResponse(header=header)
            for count, (key, value) in enumerate(source.items(), 1):
                if count % ROWS_PER_TURN == 0:
                    await asyncio.sleep(0)
                if policy_id is None or dump.entry_policy_id(key) == policy_id:
                    yield pb.DumpMapResponse(row=pb.MapRow(cells=layout.cells(key, value)))

    def _policy_id(self, request: pb.DumpMapRequest) -> int | None:
        if not request.endpoint:
            return None
        if request.map != pb.MAP_KIND_POLICY:
            raise Invalid("endpoint: only the policy map can be cut down to one endpoint")
        policy = self._knowledge.engine.endpoint_policy(self._named(request.endpoint).id)
        return policy.policy_id if policy else 0


def _line(where: str, what: str) -> str:
    return what if where in what else f"{where}: {what}"
