"""One Service's backends and flags: which set of backends each of its frontends gets, and how they are chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.agent.abi.lb import Scope, ServiceFlags
from services.agent.calc.services import backends as endpoints
from services.agent.calc.services.backends import Backend
from services.agent.calc.services.entries import backend_value
from services.agent.calc.services.frontends import Plan
from services.agent.calc.services.options import Algorithm, Forwarding, LbOptions, NodeFacts
from services.agent.calc.services.problems import Problem, ProblemKind
from services.agent.calc.services.sets import MAX_BACKENDS, SetSpec
from services.agent.calc.services.wishes import Kind, Wishes
from services.model.services import EndpointSlice, Service, ServicePort
from services.model.verdict import Protocol

SetKey = tuple[int, int, int, bool]
"""(port, protocol, IP version, only endpoints of this node): which set of a Service."""


@dataclass(frozen=True, slots=True)
class BackendSet:
    """The backends of one set: who may be chosen, and everybody there is."""

    everybody: tuple[Backend, ...]
    spec: SetSpec


def set_of(plan: Plan) -> SetKey:
    """Which set a frontend uses."""
    return plan.service_port.port, plan.protocol, plan.address.version, plan.local


def set_name(service: Service, key: SetKey) -> str:
    """What makes its number: the same on every run."""
    port, protocol, version, local = key
    return f"{service.namespace}/{service.name} {port} {protocol} {version} {'local' if local else 'all'}"


def build_sets(
    service: Service,
    plans: Iterable[Plan],
    slices: Sequence[EndpointSlice],
    wishes: Wishes,
    node: NodeFacts,
    options: LbOptions,
) -> tuple[dict[SetKey, BackendSet], list[Problem]]:
    """Every set that the frontends use, and what is wrong with them."""
    used: dict[SetKey, list[Plan]] = {}
    for plan in plans:
        if plan.port:
            used.setdefault(set_of(plan), []).append(plan)
    problems = endpoints.misplaced(slices)
    gathered: dict[tuple[ServicePort, int], list[Backend]] = {}
    sets = {}
    for key, frontends in used.items():
        port, version = frontends[0].service_port, key[2]
        if (port, version) not in gathered:
            gathered[port, version] = endpoints.gather(slices, port, version)
        everybody = gathered[port, version]
        chosen = endpoints.choose(everybody, node, local=key[3], topology=options.topology)
        if len(chosen) > MAX_BACKENDS:
            text = f"port {port.port}: {len(chosen)} backends, {MAX_BACKENDS} are used; divide the Service"
            problems.append(Problem(ProblemKind.TOO_MANY_BACKENDS, text))
            chosen = chosen[:MAX_BACKENDS]
        spec = _spec(service, key[1], chosen, frontends, wishes, node, options)
        if spec.maglev_size and 100 * len(chosen) > spec.maglev_size:
            text = f"port {port.port}: maglev_size {spec.maglev_size} is small for {len(chosen)} backends; enlarge it"
            problems.append(Problem(ProblemKind.TABLE_TOO_SMALL, text))
        sets[key] = BackendSet(tuple(everybody), spec)
    return sets, problems


def _spec(
    service: Service,
    protocol: int,
    chosen: Sequence[Backend],
    frontends: Sequence[Plan],
    wishes: Wishes,
    node: NodeFacts,
    options: LbOptions,
) -> SetSpec:
    maglev = wishes.algorithm is Algorithm.MAGLEV and any(plan.scope == Scope.EXTERNAL for plan in frontends)
    guarded = any(is_guarded(plan, service, options) for plan in frontends)
    version = frontends[0].address.version
    return SetSpec(
        members=tuple(backend_value(*b.order, protocol, local=b.node == node.name) for b in chosen),
        affinity=bool(service.affinity_seconds),
        maglev_size=options.maglev_size if maglev else 0,
        maglev_seed=options.maglev_seed if maglev else 0,
        ranges=tuple(r for r in service.source_ranges if r.version == version) if guarded else (),
    )


def is_guarded(plan: Plan, service: Service, options: LbOptions) -> bool:
    """Whether only some clients of the outside may use a frontend. Ranges of the other family alone let nobody in."""
    if plan.scope != Scope.EXTERNAL or not service.source_ranges:
        return False
    return plan.kind is Kind.LOAD_BALANCER or (options.source_ranges_everywhere and plan.kind is not Kind.HOST_PORT)


def flags_of(
    plan: Plan, service: Service, wishes: Wishes, found: BackendSet | None, options: LbOptions
) -> ServiceFlags:
    """How the datapath treats a frontend with a port. `found` is None where its backends have no room: dropped, not
    refused."""
    flags = ServiceFlags(0)
    if plan.local:
        flags |= ServiceFlags.LOCAL
    if found is not None and not found.spec.members and _nobody(plan, found):
        flags |= ServiceFlags.REFUSE
    if service.affinity_seconds:
        flags |= ServiceFlags.AFFINITY
    if found is not None and found.spec.maglev_size and plan.scope == Scope.EXTERNAL:
        flags |= ServiceFlags.MAGLEV
    if is_guarded(plan, service, options):
        flags |= ServiceFlags.SOURCE_RANGES | (ServiceFlags.SOURCE_DENY if wishes.deny_ranges else ServiceFlags(0))
    if plan.scope == Scope.EXTERNAL and not plan.local and _answers_directly(wishes, plan.protocol):
        flags |= ServiceFlags.DSR
    return flags | _KIND_FLAGS.get(plan.kind, ServiceFlags(0))


_KIND_FLAGS: Mapping[Kind, ServiceFlags] = {
    Kind.NODE_PORT: ServiceFlags.NODE_PORT,
    Kind.HOST_PORT: ServiceFlags.HOST_PORT,
}


def _nobody(plan: Plan, found: BackendSet) -> bool:
    """Refuse only where no other node could serve either: behind `Local` others may, and clients are to try them."""
    usable = {endpoints.State.ACTIVE, endpoints.State.TERMINATING}
    return not plan.local or not any(backend.state in usable for backend in found.everybody)


def _answers_directly(wishes: Wishes, protocol: int) -> bool:
    if wishes.forwarding is Forwarding.HYBRID:
        return protocol == Protocol.TCP
    return wishes.forwarding is Forwarding.DSR
