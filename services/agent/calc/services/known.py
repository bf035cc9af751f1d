"""What is known of the Services, and the questions that others have about it. `registry.Services` changes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from functools import lru_cache

from services.agent.abi.lb import ServiceFlags
from services.agent.calc.maps import MapName
from services.agent.calc.services import frontends, wishes
from services.agent.calc.services.backends import Backend, State, gather
from services.agent.calc.services.build import BackendSet, SetKey, set_of
from services.agent.calc.services.claims import Name
from services.agent.calc.services.entries import place_of, read_info, service_key
from services.agent.calc.services.frontends import HOST_PORT, Plan
from services.agent.calc.services.options import LbOptions, NodeFacts
from services.agent.calc.services.problems import Problem, ProblemKind
from services.agent.calc.services.report import Frontend, HealthCheck, ServiceReport
from services.agent.calc.services.sets import BackendSets
from services.agent.calc.services.wishes import Wishes
from services.agent.calc.table import Table
from services.model.addresses import IPAddress
from services.model.keys import ObjectKey
from services.model.services import EndpointSlice, Service, TrafficPolicy


@dataclass(frozen=True, slots=True)
class Installed:
    """What the maps have of a Service: what the next change must know. The rest follows from the objects."""

    placed: tuple[bytes, ...] = ()
    """Where it is: keys in the map."""
    sets: tuple[tuple[SetKey, int], ...] = ()
    """Its sets, and their numbers."""
    everybody: bytes = b""
    """Address and port of everybody in its sets, one after the other."""
    problems: tuple[Problem, ...] = ()


NOTHING = Installed()


@dataclass(slots=True)
class Planned:
    """What the maps should have of a Service, while it is worked out."""

    plans: dict[bytes, Plan] = field(default_factory=dict)
    """Key in the map -> frontend."""
    wishes: Wishes | None = None
    refused: list[Problem] = field(default_factory=list)
    """What is wrong with the plans."""
    placed: dict[bytes, int] = field(default_factory=dict)
    """Where it is by now: key in the map -> service id."""
    sets: dict[SetKey, tuple[int, BackendSet]] = field(default_factory=dict)

    def installed(self, problems: list[Problem]) -> Installed:
        """What is kept of it."""
        return Installed(
            tuple(self.placed),
            tuple((_shared(key), number) for key, (number, _) in self.sets.items()),
            b"".join(backend.place for _, found in self.sets.values() for backend in found.everybody),
            tuple(dict.fromkeys(problems)),
        )


@lru_cache(1024)
def _shared(key: SetKey) -> SetKey:
    """Thousands of Services have port 80."""
    return key


class Known:
    """Objects as they were told, and what the maps have of them."""

    def __init__(self, node: NodeFacts, options: LbOptions) -> None:
        self._node, self._options = node, options
        self._services: dict[Name, Service] = {}
        self._slices: dict[Name, tuple[EndpointSlice, ...]] = {}
        self._installed: dict[Name, Installed] = {}
        self._sets = BackendSets(options.max_backends)
        own: tuple[MapName, ...] = ("services", "revnat")
        self.tables: dict[MapName, Table] = {name: Table(name) for name in own} | self._sets.tables
        self._by_id: dict[int, Name] = {}
        self._live: dict[bytes, int] = {}
        """Backend -> in how many sets."""
        self._troubled: set[Name] = set()
        """Services with problems."""
        self._checked: set[Name] = set()
        """Services with a health check port."""

    def _plan(self, name: Name) -> Planned:
        """Where a Service wants to be."""
        service, planned = self._services.get(name), Planned()
        if service is not None and frontends.is_ours(service, self._options):
            planned.wishes = wishes.read(service, self._node.labels, self._options)
            plans, planned.refused = frontends.plan(service, planned.wishes, self._node, self._options)
            planned.plans = {key_of(plan): plan for plan in plans}
        return planned

    def services(self) -> Iterable[Service]:
        """All Services, for rules that refer to them."""
        return [service for service in self._services.values() if service.type != HOST_PORT]

    def backends(self, service: Service) -> Iterable[IPAddress]:
        """All addresses behind a Service, ready or not."""
        slices = self._slices.get((service.namespace, service.name), ())
        return {address for part in slices for endpoint in part.endpoints for address in endpoint.addresses}

    def frontends(self) -> list[Frontend]:
        """All frontends with a port."""
        return [f for name in self._installed for f in self._frontends(name) if f.port]

    def _frontends(self, name: Name) -> Iterator[Frontend]:
        installed, table = self._installed.get(name, NOTHING), self.tables["services"].desired
        plans, sets = self._plan(name).plans if installed.placed else {}, dict(installed.sets)
        for key in installed.placed:
            if (plan := plans.get(key)) is None:
                continue  # it has changed since, and that is not written yet
            number, flags = read_info(table[key])
            found = self._sets.members(sets[set_of(plan)]) if plan.port and set_of(plan) in sets else ()
            yield Frontend(
                number,
                *name,
                plan.service_port.name,
                plan.kind,
                plan.address,
                plan.port,
                plan.protocol,
                plan.scope,
                ServiceFlags(flags),
                tuple(place_of(member) for member in found),
            )

    def live_backends(self) -> Set[bytes]:
        """Address and port (network order, 18 bytes) of everybody who is behind a Service in any state: connections to
        those stay. A view: it follows what is settled."""
        return self._live.keys()

    def name_of(self, service_id: int) -> Name | None:
        """(namespace, name) of the Service behind a datapath id."""
        return self._by_id.get(service_id)

    def number_of(self, key: ObjectKey) -> int:
        """The lowest datapath id of a Service's ports; 0 where it has none."""
        installed = self._installed.get((key.namespace, key.name), NOTHING)
        return min((number for _, number in installed.sets), default=0)

    def health_checks(self) -> list[HealthCheck]:
        """Who asks for a health check server on this node."""
        return [
            HealthCheck(*name, self._services[name].health_check_node_port, self._active_here(name))
            for name in self._checked
            if self._services[name].external_policy is TrafficPolicy.LOCAL and name in self._installed
        ]

    def _active_here(self, name: Name) -> int:
        service = self._services[name]
        slices = self._slices.get(name, ())
        return len(
            {
                backend.address
                for port in service.ports
                for version in (4, 6)
                for backend in gather(slices, port, version)
                if backend.state is State.ACTIVE and backend.node == self._node.name
            }
        )

    def reports(self) -> list[ServiceReport]:
        """Everything, for people: sorted, host ports and slices without a Service included."""
        return [self.report(name) for name in self.names()]

    def names(self) -> list[Name]:
        """Who has a report now."""
        return sorted(self._services.keys() | self._slices.keys())

    def count(self) -> int:
        """Services that are reached somewhere on this node, host ports aside."""
        return sum(self._services[name].type != HOST_PORT for name, i in self._installed.items() if i.placed)

    def report(self, name: Name) -> ServiceReport:
        """One Service, or slices that wait for one."""
        service, installed = self._services.get(name), self._installed.get(name, NOTHING)
        slices, problems = self._slices.get(name, ()), installed.problems
        if service is None:
            text = (
                f"there is no Service {name[1]!r} for EndpointSlice {', '.join(sorted(each.name for each in slices))}"
            )
            problems = (Problem(ProblemKind.SLICE_WITHOUT_SERVICE, text),)
        found: dict[tuple[str, Backend], None] = {}
        sets = {key for key, _ in installed.sets}
        for plan in self._plan(name).plans.values():
            if plan.port and set_of(plan) in sets:
                for backend in gather(slices, plan.service_port, plan.address.version):
                    found[plan.service_port.name, backend] = None
        return ServiceReport(
            *name, service.type if service else "", tuple(self._frontends(name)), tuple(found), problems
        )

    def problems(self) -> Iterator[tuple[Name, Problem]]:
        """Every problem of every Service."""
        for name in sorted(self._troubled | (self._slices.keys() - self._services.keys())):
            yield from ((name, problem) for problem in self.report(name).problems)


def key_of(plan: Plan) -> bytes:
    """A plan's key in the kernel's map."""
    return service_key(plan.address, plan.port, plan.protocol, plan.scope)
