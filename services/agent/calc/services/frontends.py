"""Where clients can reach a Service on this node: addresses and ports, for which clients, with which endpoints.

Pure functions of one Service, the node and the options; who wins where two Services want one address is decided in
`claims`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from services.agent.abi.lb import Scope
from services.agent.calc.services.options import LbOptions, NodeFacts
from services.agent.calc.services.problems import Problem, ProblemKind
from services.agent.calc.services.wishes import Kind, Wishes
from services.model.addresses import IPAddress
from services.model.services import HEADLESS_LABEL, PROXY_NAME_LABEL, Service, ServicePort, TrafficPolicy

HOST_PORT = "HostPort"
"""Type of the Services that stand for pods' host ports."""
NO_PORT = ServicePort("", 0, 0, 0)
ANY_ADDRESS: tuple[IPAddress, ...] = (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))


@dataclass(frozen=True, slots=True)
class Plan:
    """A frontend that a Service should have. Port and protocol 0: every other port of the address."""

    kind: Kind
    address: IPAddress
    port: int
    protocol: int
    scope: Scope
    local: bool
    """Only endpoints of this node."""
    service_port: ServicePort


def is_ours(service: Service, options: LbOptions) -> bool:
    """Whether the datapath has anything to do with it."""
    if service.type == "ExternalName" or HEADLESS_LABEL in service.labels:
        return False
    return service.labels.get(PROXY_NAME_LABEL, "") == options.proxy_name


def plan(service: Service, wishes: Wishes, node: NodeFacts, options: LbOptions) -> tuple[list[Plan], list[Problem]]:
    """Every frontend, and what cannot be one."""
    if service.type == HOST_PORT:
        return _host_port(service, node, options)
    problems = _check_ports(service, options)
    plans = [p for p in _all(service, node, options) if p.kind in wishes.kinds]
    bad = set(_not_addresses(service, node, problems))
    return [p for p in plans if p.kind is Kind.NODE_PORT or p.address not in bad], problems


def _all(service: Service, node: NodeFacts, options: LbOptions) -> Iterator[Plan]:
    inside, outside = service.internal_policy == TrafficPolicy.LOCAL, service.external_policy == TrafficPolicy.LOCAL
    for address in service.cluster_ips:
        scopes = tuple(Scope) if options.external_cluster_ips else (Scope.INTERNAL,)
        for scope in scopes:
            yield from _at(Kind.CLUSTER_IP, address, scope, service, local=inside)
    # From inside the cluster, addresses for the outside lead to every endpoint.
    for scope in Scope:
        local = outside and scope == Scope.EXTERNAL
        for address in service.ingress_ips:
            yield from _at(Kind.LOAD_BALANCER, address, scope, service, local=local, alone=address in node.addresses)
        for address in service.external_ips:
            yield from _at(Kind.EXTERNAL_IP, address, scope, service, local=local, alone=address in node.addresses)
        if service.type not in ("NodePort", "LoadBalancer"):
            continue
        for address in node.addresses:
            if address.version not in _versions(service):
                continue
            for port in service.ports:
                if port.node_port and _in(port.node_port, options):
                    yield Plan(Kind.NODE_PORT, address, port.node_port, port.protocol, scope, local, port)
    for port in service.ports:
        if service.type in ("NodePort", "LoadBalancer") and port.node_port and _in(port.node_port, options):
            for address in _anywhere(service, node):
                yield Plan(Kind.NODE_PORT, address, port.node_port, port.protocol, Scope.INTERNAL, False, port)


def _anywhere(service: Service, node: NodeFacts) -> Iterator[IPAddress]:
    """Address zero of the families that Service and node share: what sockets look up for addresses without an entry of
    their own, which are loopback ones and other nodes' (`bpf/lib/node_port.h`)."""
    versions = _versions(service) & {address.version for address in node.addresses}
    yield from (zero for zero in ANY_ADDRESS if zero.version in versions)


def _versions(service: Service) -> frozenset[int]:
    """The IP versions that a Service has: those of its cluster addresses."""
    return frozenset(address.version for address in service.cluster_ips) or frozenset((4, 6))


def _at(
    kind: Kind, address: IPAddress, scope: Scope, service: Service, *, local: bool, alone: bool = False
) -> Iterator[Plan]:
    """All ports at an address; the address's other ports are nobody's, unless the node itself has it (`alone`)."""
    for port in service.ports:
        yield Plan(kind, address, port.port, port.protocol, scope, local, port)
    if service.ports and not alone:
        yield Plan(kind, address, 0, 0, scope, local, NO_PORT)


def _host_port(service: Service, node: NodeFacts, options: LbOptions) -> tuple[list[Plan], list[Problem]]:
    (port,) = service.ports
    if _in(port.port, options):
        low, high = options.node_ports
        text = f"hostPort {port.port} is in the range of node ports, {low}-{high}; choose another"
        return [], [Problem(ProblemKind.PORT_OUT_OF_RANGE, text)]
    addresses = service.external_ips or node.addresses
    plans = [
        Plan(Kind.HOST_PORT, address, port.port, port.protocol, scope, True, port)
        for address in addresses
        for scope in Scope
    ]
    anywhere = () if service.external_ips else _anywhere(service, node)
    own = [Plan(Kind.HOST_PORT, a, port.port, port.protocol, Scope.INTERNAL, True, port) for a in anywhere]
    return plans + own, []


def _in(port: int, options: LbOptions) -> bool:
    return options.node_ports[0] <= port <= options.node_ports[1]


def _check_ports(service: Service, options: LbOptions) -> list[Problem]:
    problems = []
    low, high = options.node_ports
    for port in service.ports:
        if port.node_port and not _in(port.node_port, options):
            text = f"nodePort {port.node_port} is outside of {low}-{high}; it is not served, remove it to get another"
            problems.append(Problem(ProblemKind.PORT_OUT_OF_RANGE, text))
    names = [port.name for port in service.ports]
    if len(set(names)) < len(names):
        text = f"ports need different names, not {', '.join(repr(name) for name in names)}: slices match them by name"
        problems.append(Problem(ProblemKind.AMBIGUOUS_PORTS, text))
    return problems


def _not_addresses(service: Service, node: NodeFacts, problems: list[Problem]) -> Iterator[IPAddress]:
    """Addresses that no Service can have."""
    for address in dict.fromkeys((*service.cluster_ips, *service.ingress_ips, *service.external_ips)):
        impossible = address.is_unspecified or address.is_loopback or address.is_multicast
        # Addresses for the outside may well be nodes': some load balancers are just that.
        if impossible or (address in node.addresses and address in service.cluster_ips):
            what = "the node's own" if not impossible else "no address of a Service"
            problems.append(Problem(ProblemKind.ADDRESS_TAKEN, f"{address} is {what}; it is not served"))
            yield address
        elif address.version not in _versions(service):
            text = f"{address} is IPv{address.version}, the Service is not; it is not served, add the family to it"
            problems.append(Problem(ProblemKind.WRONG_FAMILY, text))
            yield address
