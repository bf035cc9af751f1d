"""All Services of the cluster as this node serves them: the desired content of the load balancing maps.

    Service, EndpointSlices, Node, options ─▶ plans (where) ─▶ claims (who has an address) ─▶ sets (with whom) ─▶ tables

Only Services that changed are computed again, and only entries that differ are written.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.agent.abi.lb import ServiceFlags
from services.agent.calc.numbers import StableNumbers
from services.agent.calc.services import hostports
from services.agent.calc.services.build import SetKey, build_sets, flags_of, set_name, set_of
from services.agent.calc.services.claims import Claims, Name
from services.agent.calc.services.entries import PLACE, port_of, revnat_value, service_info, u32
from services.agent.calc.services.frontends import Plan
from services.agent.calc.services.known import NOTHING, Installed, Known, Planned
from services.agent.calc.services.options import Algorithm, Forwarding, LbOptions, NodeFacts
from services.agent.calc.services.problems import Problem, ProblemKind
from services.agent.calc.services.wishes import Kind, Wishes
from services.model.addresses import IPAddress
from services.model.keys import ObjectKey
from services.model.objects import KubeNode, Pod
from services.model.services import EndpointSlice, Service

_OF_THE_NODE = (Kind.NODE_PORT, Kind.HOST_PORT)
_WILDCARD = service_info(0, 0, ServiceFlags.WILDCARD)
"""The value of every other port of an address."""
_NO_WISHES = Wishes(Algorithm.RANDOM, Forwarding.SNAT, False, frozenset())


class Services(Known):
    """Keeps the load balancing maps' desired content."""

    def __init__(self, node: NodeFacts | None = None, options: LbOptions | None = None) -> None:
        super().__init__(node or NodeFacts(), options or LbOptions())
        self._slice_owner: dict[ObjectKey, str] = {}
        self._claims = Claims()
        self._numbers = StableNumbers(1, (1 << 31) - 1)
        self._dirty: set[Name] = set()
        self._starved: set[Name] = set()
        self._host_ports: dict[Name, set[Name]] = {}
        self._wildcards: dict[bytes, int] = {}

    # What is told.

    def set_service(self, key: ObjectKey, service: Service | None) -> None:
        """A Service came, changed or went."""
        self._set((key.namespace, key.name), service)

    def _set(self, name: Name, service: Service | None) -> None:
        if service is None:
            self._services.pop(name, None)
        else:
            self._services[name] = service
        self._dirty.add(name)
        if service is not None and service.health_check_node_port:
            self._checked.add(name)
        else:
            self._checked.discard(name)

    def set_slice(self, key: ObjectKey, found: EndpointSlice | None) -> None:
        """An EndpointSlice came, changed or went."""
        before = self._slice_owner.pop(key, None)
        if before is not None:
            owner = (key.namespace, before)
            left = tuple(each for each in self._slices.pop(owner) if each.name != key.name)
            if left:
                self._slices[owner] = left
            self._dirty.add(owner)
        if found is not None and found.service:
            self._slice_owner[key] = found.service
            owner = (key.namespace, found.service)
            self._slices[owner] = (*self._slices.get(owner, ()), found)
            self._dirty.add(owner)

    def set_pod(self, name: Name, pod: Pod | None) -> None:
        """A pod came, changed or went; those of this node may have host ports, which are Services of their own."""
        made = hostports.services_of(pod, self._node.name) if pod is not None else {}
        for gone in self._host_ports.pop(name, set()) - made.keys():
            self._set(gone, None)
            self.set_slice(ObjectKey("EndpointSlice", *gone), None)
        for own, (service, behind) in made.items():
            if self._services.get(own) != service:
                self._set(own, service)
            if self._slices.get(own) != (behind,):
                self.set_slice(behind.key, behind)
        if made:
            self._host_ports[name] = set(made)

    def set_node(self, node: KubeNode | None) -> None:
        """This node's object changed: its zone and labels decide what it serves and with whom."""
        labels = node.labels if node else {}
        if labels != self._node.labels:
            self._node = NodeFacts(self._node.name, self._node.addresses, dict(labels))
            self._dirty |= self._services.keys()

    def set_addresses(self, addresses: Iterable[IPAddress]) -> None:
        """The node's own addresses: node ports and host ports are there."""
        wanted = tuple(dict.fromkeys(addresses))
        if wanted != self._node.addresses:
            self._node = NodeFacts(self._node.name, wanted, self._node.labels)
            self._dirty |= self._services.keys()

    # What follows.

    def settle(self) -> bool:
        """Recompute what changed; whether anything did (references to Services may lead elsewhere now)."""
        if not self._dirty:
            return False
        # Whoever found no room asks again at every change: it may have made some.
        affected = self._dirty | self._starved
        self._dirty, self._starved = set(), set()
        planned = {name: self._plan(name) for name in affected}
        for name in sorted(planned):
            affected |= self._claim(name, planned[name])
        planned |= {name: self._plan(name) for name in affected - planned.keys()}
        # What one gives up another may take, so everybody gives up first.
        before = {name: self._retract(name, planned[name]) for name in sorted(affected)}
        self._count(before.values(), -1)
        for name in sorted(affected):
            self._install(name, planned.pop(name), before[name])
        # Others may have shrunk behind whoever found no room.
        again, self._starved = sorted(self._starved), set()
        self._troubled.difference_update(again)
        for name in again:
            self._install(name, self._plan(name), self._installed[name])
        self._count((self._installed[name] for name in affected if name in self._installed), 1)
        return True

    def _count(self, services: Iterable[Installed], step: int) -> None:
        """Who is behind Services, one more or less."""
        for installed in services:
            for at in range(0, len(installed.everybody), PLACE):
                raw = installed.everybody[at : at + PLACE]
                count = self._live.get(raw, 0) + step
                if count:
                    self._live[raw] = count
                else:
                    del self._live[raw]

    def _claim(self, name: Name, planned: Planned) -> set[Name]:
        """Who else wins or loses an address by that."""
        service = self._services.get(name)
        created = service.created if service else ""
        return self._claims.want(name, created, [key for key, plan in planned.plans.items() if plan.port])

    def _retract(self, name: Name, planned: Planned) -> Installed:
        """Take out of the tables what will not be there any more; returns what there was."""
        before = self._installed.pop(name, NOTHING)
        self._troubled.discard(name)
        kept: set[bytes] = set()
        used: set[SetKey] = set()
        for key, plan in planned.plans.items():
            if not plan.port:
                kept.add(key)
            elif self._claims.owner(key) == name:
                kept.add(key)
                used.add(set_of(plan))
        for key in before.placed:
            if key not in kept and (port_of(key) or self._leave_wildcard(key)):
                self.tables["services"].remove(key)
        for used_key, number in before.sets:
            if used_key not in used:
                self._drop_set(number)
        return before

    def _leave_wildcard(self, key: bytes) -> bool:
        """One Service less at an address; whether that was the last."""
        self._wildcards[key] -= 1
        if self._wildcards[key]:
            return False
        del self._wildcards[key]
        return True

    def _drop_set(self, number: int) -> None:
        self._sets.drop(number)
        self.tables["revnat"].remove(u32(number))
        text = self._numbers.name(number)
        if text is not None:
            self._numbers.give_back(text)
        self._by_id.pop(number, None)

    def _install(self, name: Name, planned: Planned, before: Installed) -> None:
        """Write the sets, then the frontends that count them."""
        service, wanted = self._services.get(name), planned.wishes
        if service is None or wanted is None:
            return
        problems = [*planned.refused, *wanted.problems]
        owned = {key: plan for key, plan in planned.plans.items() if self._owns(name, key, plan, problems)}
        slices = self._slices.get(name, ())
        sets, found = build_sets(service, owned.values(), slices, wanted, self._node, self._options)
        problems += found
        for key, built in sets.items():
            number = self._numbers.take(set_name(service, key))
            if number is None or not self._sets.has_room(number, len(built.spec.members)):
                self._no_room(name, f"{len(built.spec.members)} backends of port {key[0]}", problems)
                if number is not None:
                    self._drop_set(number)
                continue
            planned.sets[key] = number, built
            self._by_id[number] = name
            self._sets.put(number, built.spec)
        for place, plan in owned.items():
            self._put_frontend(name, service, place, planned, problems)
            if not plan.port and place in planned.placed and place not in before.placed:
                self._wildcards[place] = self._wildcards.get(place, 0) + 1
        self._installed[name] = planned.installed(problems)
        if problems:
            self._troubled.add(name)

    def _owns(self, name: Name, key: bytes, plan: Plan, problems: list[Problem]) -> bool:
        if not plan.port:
            return True
        owner = self._claims.owner(key)
        if owner == name or owner is None:
            return True
        if plan.address.is_unspecified:
            return False  # said of the node's own addresses already
        kind = ProblemKind.NODE_PORT_TAKEN if plan.kind in _OF_THE_NODE else ProblemKind.ADDRESS_TAKEN
        text = f"{plan.address} port {plan.port} belongs to {owner[0]}/{owner[1]}, which is older; choose another"
        problems.append(Problem(kind, text))
        return False

    def _no_room(self, name: Name, what: str, problems: list[Problem]) -> None:
        self._starved.add(name)
        problems.append(Problem(ProblemKind.NO_ROOM, f"no room for {what}; raise lb_frontends_max or lb_backends_max"))

    def _put_frontend(
        self, name: Name, service: Service, key: bytes, planned: Planned, problems: list[Problem]
    ) -> None:
        table, plan = self.tables["services"], planned.plans[key]
        if key not in table.desired and len(table.desired) >= self._options.max_frontends:
            self._no_room(name, f"frontend {plan.address} port {plan.port}", problems)
            return
        if not plan.port:
            table.put(key, _WILDCARD)
            planned.placed[key] = 0
            return
        number, found = planned.sets.get(set_of(plan), (0, None))
        flags = flags_of(plan, service, planned.wishes or _NO_WISHES, found, self._options)
        maglev = found.spec.maglev_size if found and flags & ServiceFlags.MAGLEV else 0
        table.put(
            key,
            service_info(
                number,
                len(found.spec.members) if found else 0,
                flags,
                affinity_seconds=service.affinity_seconds,
                maglev_size=maglev,
                maglev_seed=self._options.maglev_seed if maglev else 0,
            ),
        )
        if number and number not in planned.placed.values():
            self.tables["revnat"].put(u32(number), revnat_value(plan.address, plan.port))
        planned.placed[key] = number
