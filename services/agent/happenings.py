"""What happens on this node, for `GetAgentEvents`: policies, endpoints, addresses, Services come, change and go.

Input: updates as the driver hands them out (before the engine has them), and the end of every batch. Output:
`flows.agent_events.AgentEvents`, whose messages are built when somebody reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from services.agent.calc.catalogue import rules_of
from services.agent.calc.engine import Engine
from services.agent.realised import Realised
from services.common.pb.flow import flow_pb2 as pb
from services.flows.agent_events import CAPACITY, AgentEvents
from services.model.addresses import IPAddress
from services.model.keys import ObjectKey
from services.model.labels import Labels
from services.model.objects import (
    Deleted,
    EndpointDeleted,
    EndpointUpserted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    LocalEndpoint,
    PolicyObject,
    Update,
    Upserted,
)
from services.model.services import Service
from services.policy.rules import Policy

POLICY_LABEL = "k8s:io.cilium.k8s.policy"

Refusals = Callable[[], Mapping[str, str]]


class Happenings:
    """`observe` before the engine has an update, `applied` after the maps were written."""

    def __init__(self, events: AgentEvents, engine: Engine, realised: Realised, refusals: Refusals) -> None:
        """`refusals`: map -> what the kernel last said about it, for maps that do not hold what they should."""
        self._events, self._engine, self._realised, self._refusals = events, engine, realised, refusals
        self._endpoints: dict[int, LocalEndpoint] = {}
        self._obeyed: dict[int, int] = {}
        """Endpoint -> the policy revision that was told of."""
        self._failing: set[int] = set()
        self._policies: dict[ObjectKey, PolicyObject | None] = {}
        """Policy documents of the batch under way; None = deleted."""
        self._services: dict[ObjectKey, Service] = {}

    def started(self, started_ns: int) -> None:
        """The agent's process runs since then."""
        self._events.tell(partial(_started, started_ns))

    def observe(self, update: Update) -> None:
        """See `Driver.observers`."""
        match update:
            case IpUpserted(entry=entry):
                before = self._engine.row(entry.prefix)
                if before != entry:
                    self._events.tell(partial(_address, pb.IPCACHE_UPSERTED, entry, before))
            case IpDeleted(prefix=prefix):
                before = self._engine.row(prefix)
                if before is not None:
                    self._events.tell(partial(_address, pb.IPCACHE_DELETED, before, None))
            case EndpointUpserted(endpoint=endpoint):
                known = endpoint.id in self._endpoints
                self._endpoints[endpoint.id] = endpoint
                if not known:
                    self._events.tell(partial(_endpoint, pb.ENDPOINT_CREATED, endpoint, self._labels(endpoint)))
            case EndpointDeleted(id=number):
                gone = self._endpoints.pop(number, None)
                self._obeyed.pop(number, None)
                self._failing.discard(number)
                if gone is not None:
                    self._events.tell(partial(_endpoint, pb.ENDPOINT_DELETED, gone, self._labels(gone)))
            case Upserted(object=PolicyObject() as policy):
                self._policies[policy.key] = policy
            case Deleted(key=key) if key.kind.endswith("Policy"):
                self._policies[key] = None
            case Upserted(object=Service() as service):
                self._services[service.key] = service
            case Deleted(key=key) if key.kind == "Service":
                self._services.pop(key, None)
                self._events.tell(partial(_service_gone, self._engine.load_balancing.number_of(key)))
            case _:
                pass

    def applied(self) -> None:
        """A batch is through: what it did to policy and endpoints."""
        policies, self._policies = self._policies, {}
        services, self._services = self._services, {}
        for key, document in list(policies.items())[-CAPACITY:]:
            policy = self._engine.policies().get(key) if document is not None else None
            kind = pb.POLICY_UPDATED if document is not None else pb.POLICY_DELETED
            self._events.tell(partial(_policy, kind, key, policy, self._engine.revision))
        for service in list(services.values())[-CAPACITY:]:
            known = self._engine.load_balancing
            backends = frozenset(known.backends(service))
            self._events.tell(partial(_service, service, known.number_of(service.key), backends))
        for endpoint in self._endpoints.values():
            self._regenerated(endpoint)

    def _regenerated(self, endpoint: LocalEndpoint) -> None:
        revision = self._engine.policy_revision(endpoint.id)
        if revision is None or (revision == self._obeyed.get(endpoint.id) and endpoint.id not in self._failing):
            return
        error = self._error(endpoint.id)
        if error and endpoint.id in self._failing and revision == self._obeyed.get(endpoint.id):
            return
        self._obeyed[endpoint.id] = revision
        (self._failing.add if error else self._failing.discard)(endpoint.id)
        self._events.tell(partial(_regenerated, endpoint, self._labels(endpoint), error))

    def _labels(self, endpoint: LocalEndpoint) -> Labels | None:
        return self._engine.identity_labels(endpoint.identity)

    def _error(self, endpoint: int) -> str:
        """Why the kernel does not have an endpoint's newest policy; empty where it has."""
        refused = self._refusals()
        policy = self._engine.endpoint_policy(endpoint) if refused else None
        if policy is not None and self._realised.of(policy)[1]:
            return "; ".join(f"map {name}: {text}" for name, text in refused.items())
        return ""


def _started(started_ns: int) -> pb.AgentEvent:
    event = pb.AgentEvent(type=pb.AGENT_STARTED)
    event.agent_start.time.FromNanoseconds(started_ns)
    return event


def _policy(kind: pb.AgentEventType.ValueType, key: ObjectKey, policy: Policy | None, revision: int) -> pb.AgentEvent:
    parts = {"derived-from": key.kind, "name": key.name, "namespace": key.namespace}
    labels = policy.labels if policy else [f"{POLICY_LABEL}.{name}={text}" for name, text in parts.items() if text]
    count = len(rules_of(policy)) if policy else 0
    note = pb.PolicyUpdateNotification(labels=labels, revision=revision, rule_count=count)
    return pb.AgentEvent(type=kind, policy_update=note)


def _endpoint(kind: pb.AgentEventType.ValueType, endpoint: LocalEndpoint, labels: Labels | None) -> pb.AgentEvent:
    note = pb.EndpointUpdateNotification(
        id=endpoint.id,
        labels=labels.texts() if labels else (),
        pod_name=endpoint.pod,
        namespace=endpoint.namespace,
    )
    return pb.AgentEvent(type=kind, endpoint_update=note)


def _regenerated(endpoint: LocalEndpoint, labels: Labels | None, error: str) -> pb.AgentEvent:
    kind = pb.ENDPOINT_REGENERATE_FAILURE if error else pb.ENDPOINT_REGENERATE_SUCCESS
    note = pb.EndpointRegenNotification(id=endpoint.id, labels=labels.texts() if labels else (), error=error)
    return pb.AgentEvent(type=kind, endpoint_regenerate=note)


def _address(kind: pb.AgentEventType.ValueType, entry: IpEntry, before: IpEntry | None) -> pb.AgentEvent:
    note = pb.IPCacheNotification(
        cidr=str(entry.prefix),
        identity=entry.identity,
        host_ip=str(entry.tunnel) if entry.tunnel else "",
        namespace=entry.namespace,
        pod_name=entry.pod,
    )
    if before is not None:
        note.old_identity.value = before.identity
        note.old_host_ip = str(before.tunnel) if before.tunnel else ""
    return pb.AgentEvent(type=kind, ipcache_update=note)


def _service(service: Service, number: int, backends: Iterable[IPAddress]) -> pb.AgentEvent:
    note = pb.ServiceUpsertNotification(
        id=number,
        type=service.type,
        name=service.name,
        namespace=service.namespace,
        ext_traffic_policy=service.external_policy.value,
        int_traffic_policy=service.internal_policy.value,
    )
    if service.cluster_ips and service.ports:
        note.frontend_address.ip = str(service.cluster_ips[0])
        note.frontend_address.port = service.ports[0].port
    for address in sorted(map(str, backends)):
        note.backend_addresses.add(ip=address)
    return pb.AgentEvent(type=pb.SERVICE_UPSERTED, service_upsert=note)


def _service_gone(number: int) -> pb.AgentEvent:
    return pb.AgentEvent(type=pb.SERVICE_DELETED, service_delete=pb.ServiceDeleteNotification(id=number))
