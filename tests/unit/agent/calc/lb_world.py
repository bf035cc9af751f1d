"""Services for tests: short builders, and a reader of the maps that answers as the datapath would."""

from __future__ import annotations

import ipaddress
from typing import Any

from services.agent.abi.layout import be16
from services.agent.abi.lb import Backend, ServiceFlags, ServiceInfo
from services.agent.calc.services import LbOptions, NodeFacts, Services
from services.agent.calc.services.entries import backend_key, service_key
from services.model.addresses import from_bytes
from services.model.objects import KubeNode
from services.model.services import EndpointSlice, Service, ServicePort, SliceEndpoint, TrafficPolicy

A = ipaddress.ip_address
N = ipaddress.ip_network
LOCAL, CLUSTER = TrafficPolicy.LOCAL, TrafficPolicy.CLUSTER
NODE = NodeFacts("node1", (A("192.168.0.1"), A("fd00:192::1")), {"topology.kubernetes.io/zone": "a"})
HTTP = ServicePort("http", 80, 6, 8080, 30080)


def service(name: str = "web", type: str = "ClusterIP", **more: Any) -> Service:
    """A Service of one port; addresses may be written as text."""
    for field in ("cluster_ips", "external_ips", "ingress_ips"):
        if field in more:
            more[field] = tuple(A(text) for text in more[field])
    return Service("ns", name, type, **{"cluster_ips": (A("10.96.0.1"),), "ports": (HTTP,), **more})


def endpoint(address: str, node: str = "node1", state: str = "active", **more: Any) -> SliceEndpoint:
    """An endpoint in one of the four states."""
    ready, serving, terminating = {
        "active": (True, True, False),
        "terminating": (False, True, True),
        "leaving": (False, False, True),
        "maintenance": (False, True, False),
    }[state]
    return SliceEndpoint((A(address),), ready, serving, terminating, node, **more)


def slice_of(*found: SliceEndpoint, service: str = "web", name: str = "", **more: Any) -> EndpointSlice:
    """A slice with the port that `service` has."""
    return EndpointSlice(
        "ns", name or f"{service}-1", service, **{"ports": (("http", 8080, 6),), **more}, endpoints=found
    )


class World:
    """Services on one node, settled after every change, and what the maps then say."""

    def __init__(self, *objects: Service | EndpointSlice, node: NodeFacts = NODE, **options: Any) -> None:
        self.services = Services(node, LbOptions(**options))
        self.tell(*objects)

    def tell(self, *objects: Service | EndpointSlice | KubeNode) -> None:
        for thing in objects:
            match thing:
                case Service():
                    self.services.set_service(thing.key, thing)
                case EndpointSlice():
                    self.services.set_slice(thing.key, thing)
                case KubeNode():
                    self.services.set_node(thing)
        self.services.settle()

    def forget(self, *objects: Service | EndpointSlice) -> None:
        for thing in objects:
            if isinstance(thing, Service):
                self.services.set_service(thing.key, None)
            else:
                self.services.set_slice(thing.key, None)
        self.services.settle()

    def info(self, address: str, port: int, scope: int = 0, protocol: int = 6) -> ServiceInfo | None:
        raw = self.services.tables["services"].desired.get(service_key(A(address), port, protocol, scope))
        return ServiceInfo.unpack(raw) if raw is not None else None

    def reached(self, address: str, port: int, scope: int = 0, protocol: int = 6) -> list[str] | None:
        """Backends of a frontend in the maps, sorted; None where there is no frontend."""
        info = self.info(address, port, scope, protocol)
        if info is None:
            return None
        table = self.services.tables["backends"].desired
        found = [Backend.unpack(table[backend_key(info.service_id, slot)]) for slot in range(info.backend_count)]
        return sorted(f"{from_bytes(bytes(b.address))}:{be16(b.port)}" for b in found)

    def flags(self, address: str, port: int, scope: int = 0) -> ServiceFlags:
        info = self.info(address, port, scope)
        assert info is not None
        return ServiceFlags(info.flags)

    def problems(self) -> list[tuple[str, str]]:
        """(Service, kind)"""
        return [(name, problem.kind.value) for (_, name), problem in self.services.problems()]

    def frontends(self) -> set[tuple[str, int, int]]:
        """(address, port, scope) of all that are in the maps; port 0: other ports."""
        found = set()
        for raw in self.services.tables["services"].desired:
            found.add((str(from_bytes(raw[:16])), int.from_bytes(raw[16:18], "big"), raw[19]))
        return found
