"""Services: frontends -> backends, from Service and EndpointSlice objects (policy-semantics 8).

ClusterIP frontends. A Service without usable backends keeps its frontend with no backends, so that packets to it are
dropped with a reason instead of wandering off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.agent.calc.maps import (
    MapName,
    backend_key,
    backend_value,
    revnat_value,
    service_info,
    service_key,
    u32,
)
from services.agent.calc.numbers import StableNumbers
from services.agent.calc.table import Table
from services.model.addresses import IPAddress
from services.model.objects import EndpointSlice, ObjectKey, Service, ServicePort, SliceEndpoint

Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address and port that clients of a Service use, with the backends behind it."""

    id: int
    namespace: str
    name: str
    port_name: str
    address: IPAddress
    port: int
    protocol: int
    backends: tuple[tuple[IPAddress, int], ...]


class Services:
    """Keeps the `services`, `backends` and `revnat` maps' desired content."""

    def __init__(self) -> None:
        self._services: dict[Name, Service] = {}
        self._slices: dict[Name, dict[str, EndpointSlice]] = {}
        self._slice_owner: dict[ObjectKey, Name] = {}
        self._frontends: dict[Name, dict[str, Frontend]] = {}
        self._numbers = StableNumbers(1, (1 << 31) - 1)
        self._by_id: dict[int, Name] = {}
        self._dirty: set[Name] = set()
        self.tables: dict[MapName, Table] = {name: Table(name) for name in ("services", "backends", "revnat")}

    def set_service(self, key: ObjectKey, service: Service | None) -> None:
        """A Service came, changed or went."""
        name = (key.namespace, key.name)
        if service is None:
            self._services.pop(name, None)
        else:
            self._services[name] = service
        self._dirty.add(name)

    def set_slice(self, key: ObjectKey, found: EndpointSlice | None) -> None:
        """An EndpointSlice came, changed or went."""
        owner = self._slice_owner.pop(key, None)
        if owner is not None:
            self._slices[owner].pop(key.name, None)
            self._dirty.add(owner)
        if found is not None and found.service:
            owner = self._slice_owner[key] = (key.namespace, found.service)
            self._slices.setdefault(owner, {})[key.name] = found
            self._dirty.add(owner)

    def services(self) -> Iterable[Service]:
        """All Services, for rules that refer to them."""
        return self._services.values()

    def backends(self, service: Service) -> Iterable[IPAddress]:
        """All addresses behind a Service, ready or not."""
        slices = self._slices.get((service.namespace, service.name), {})
        return {address for part in slices.values() for endpoint in part.endpoints for address in endpoint.addresses}

    def frontends(self) -> list[Frontend]:
        """All frontends, for people."""
        return [frontend for found in self._frontends.values() for frontend in found.values()]

    def name_of(self, service_id: int) -> Name | None:
        """(namespace, name) of the Service behind a datapath id."""
        return self._by_id.get(service_id)

    def settle(self) -> bool:
        """Recompute what changed; whether anything did (references to Services may lead elsewhere now)."""
        dirty, self._dirty = self._dirty, set()
        for name in sorted(dirty):
            self._settle(name)
        return bool(dirty)

    def _settle(self, name: Name) -> None:
        before = self._frontends.pop(name, {})
        service = self._services.get(name)
        after = dict(self._compute(service)) if service is not None else {}
        for text, frontend in before.items():
            if text not in after:
                self._write(frontend, None)
                self._numbers.give_back(text)
                self._by_id.pop(frontend.id, None)
        for text, frontend in after.items():
            self._by_id[frontend.id] = name
            self._write(before.get(text), frontend)
        if after:
            self._frontends[name] = after

    def _compute(self, service: Service) -> Iterable[tuple[str, Frontend]]:
        for address in service.cluster_ips:
            for port in service.ports:
                text = f"{service.namespace}/{service.name} {address} {port.port} {port.protocol}"
                number = self._numbers.take(text)
                if number is None:
                    continue
                yield (
                    text,
                    Frontend(
                        number,
                        service.namespace,
                        service.name,
                        port.name,
                        address,
                        port.port,
                        port.protocol,
                        self._backends(service, port, address),
                    ),
                )

    def _backends(self, service: Service, port: ServicePort, address: IPAddress) -> tuple[tuple[IPAddress, int], ...]:
        """Ready endpoints; where there are none, those that still serve while they terminate (8.3)."""
        active: set[tuple[IPAddress, int]] = set()
        leaving: set[tuple[IPAddress, int]] = set()
        for part in self._slices.get((service.namespace, service.name), {}).values():
            numbers = [n for name, n, protocol in part.ports if name == port.name and protocol == port.protocol]
            for endpoint in part.endpoints:
                chosen = active if endpoint.ready else leaving if _serves(endpoint) else None
                if chosen is not None:
                    chosen |= {(a, n) for a in endpoint.addresses for n in numbers if a.version == address.version}
        return tuple(sorted(active or leaving, key=str))

    def _write(self, before: Frontend | None, after: Frontend | None) -> None:
        frontends, backends, revnat = self.tables["services"], self.tables["backends"], self.tables["revnat"]
        if after is not None:
            frontends.put(
                service_key(after.address, after.port, after.protocol), service_info(after.id, len(after.backends))
            )
            revnat.put(u32(after.id), revnat_value(after.address, after.port))
            for slot, (address, port) in enumerate(after.backends):
                backends.put(backend_key(after.id, slot), backend_value(address, port, after.protocol))
        elif before is not None:
            frontends.remove(service_key(before.address, before.port, before.protocol))
            revnat.remove(u32(before.id))
        if before is not None:
            for slot in range(len(after.backends) if after else 0, len(before.backends)):
                backends.remove(backend_key(before.id, slot))


def desired(services: Services) -> dict[MapName, Mapping[bytes, bytes]]:
    """Everything that the three maps should hold."""
    return {name: table.desired for name, table in services.tables.items()}


def _serves(endpoint: SliceEndpoint) -> bool:
    return endpoint.serving and endpoint.terminating
