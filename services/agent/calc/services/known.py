"""What is known of the Services, and the questions that others have about it. `registry.Services` changes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

from services.agent.abi.lb import ServiceFlags
from services.agent.calc.services.backends import Backend, State, gather
from services.agent.calc.services.build import BackendSet, SetKey, set_of
from services.agent.calc.services.claims import Name
from services.agent.calc.services.frontends import HOST_PORT, Plan
from services.agent.calc.services.options import NodeFacts
from services.agent.calc.services.problems import Problem, ProblemKind
from services.agent.calc.services.report import Frontend, HealthCheck, ServiceReport
from services.agent.calc.services.wishes import Wishes
from services.model.addresses import IPAddress
from services.model.keys import ObjectKey
from services.model.services import EndpointSlice, Service, TrafficPolicy


@dataclass(slots=True)
class Installed:
    """What the maps have of a Service."""

    plans: dict[bytes, Plan] = field(default_factory=dict)
    """Where it wants to be: key in the map -> frontend."""
    wishes: Wishes | None = None
    refused: list[Problem] = field(default_factory=list)
    """What was wrong with the plans."""
    placed: dict[bytes, tuple[int, ServiceFlags]] = field(default_factory=dict)
    """Where it is: key in the map -> (service id, flags)."""
    sets: dict[SetKey, tuple[int, BackendSet]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


class Known:
    """Objects as they were told, and what the maps have of them."""

    def __init__(self, node: NodeFacts) -> None:
        self._node = node
        self._services: dict[Name, Service] = {}
        self._slices: dict[Name, dict[str, EndpointSlice]] = {}
        self._installed: dict[Name, Installed] = {}
        self._by_id: dict[int, Name] = {}
        self._live: dict[bytes, int] = {}
        """Backend -> in how many sets."""
        self._troubled: set[Name] = set()
        """Services with problems."""
        self._checked: set[Name] = set()
        """Services with a health check port."""

    def services(self) -> Iterable[Service]:
        """All Services, for rules that refer to them."""
        return [service for service in self._services.values() if service.type != HOST_PORT]

    def backends(self, service: Service) -> Iterable[IPAddress]:
        """All addresses behind a Service, ready or not."""
        slices = self._slices.get((service.namespace, service.name), {})
        return {address for part in slices.values() for endpoint in part.endpoints for address in endpoint.addresses}

    def frontends(self) -> list[Frontend]:
        """All frontends with a port."""
        return [f for name in self._installed for f in self._frontends(name) if f.port]

    def _frontends(self, name: Name) -> Iterator[Frontend]:
        installed = self._installed.get(name, Installed())
        for key, (number, flags) in installed.placed.items():
            plan = installed.plans[key]
            found = installed.sets.get(set_of(plan)) if plan.port else None
            yield Frontend(
                number,
                *name,
                plan.service_port.name,
                plan.kind,
                plan.address,
                plan.port,
                plan.protocol,
                plan.scope,
                flags,
                found[1].chosen if found else (),
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
        installed = self._installed.get((key.namespace, key.name), Installed())
        return min((number for number, _ in installed.sets.values()), default=0)

    def health_checks(self) -> list[HealthCheck]:
        """Who asks for a health check server on this node."""
        return [
            HealthCheck(*name, self._services[name].health_check_node_port, self._active_here(name))
            for name in self._checked
            if self._services[name].external_policy is TrafficPolicy.LOCAL and name in self._installed
        ]

    def _active_here(self, name: Name) -> int:
        service = self._services[name]
        slices = self._slices.get(name, {}).values()
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
        service, installed = self._services.get(name), self._installed.get(name, Installed())
        problems = installed.problems
        if service is None:
            text = f"there is no Service {name[1]!r} for EndpointSlice {', '.join(sorted(self._slices.get(name, ())))}"
            problems = (Problem(ProblemKind.SLICE_WITHOUT_SERVICE, text),)
        found: dict[tuple[str, Backend], None] = {}
        for plan in installed.plans.values():
            if plan.port and set_of(plan) in installed.sets:
                for backend in installed.sets[set_of(plan)][1].everybody:
                    found[plan.service_port.name, backend] = None
        return ServiceReport(
            *name, service.type if service else "", tuple(self._frontends(name)), tuple(found), problems
        )

    def problems(self) -> Iterator[tuple[Name, Problem]]:
        """Every problem of every Service."""
        for name in sorted(self._troubled | (self._slices.keys() - self._services.keys())):
            yield from ((name, problem) for problem in self.report(name).problems)
