"""Services as people and other parts of the agent see them."""

from __future__ import annotations

from dataclasses import dataclass

from services.agent.abi.lb import Scope, ServiceFlags
from services.agent.calc.services.backends import Backend
from services.agent.calc.services.problems import Problem
from services.agent.calc.services.wishes import Kind
from services.model.addresses import IPAddress

Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address and port that clients of a Service use, with the backends that new connections get.

    Port and protocol 0: every other port of the address, which is dropped.
    """

    id: int
    namespace: str
    name: str
    port_name: str
    kind: Kind
    address: IPAddress
    port: int
    protocol: int
    scope: Scope
    flags: ServiceFlags
    backends: tuple[tuple[IPAddress, int], ...]


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """One Service: where it is reached, who is behind it, what is wrong."""

    namespace: str
    name: str
    type: str
    frontends: tuple[Frontend, ...]
    endpoints: tuple[tuple[str, Backend], ...]
    """(port name, endpoint), whatever its state."""
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What a load balancer in front of the nodes asks each of them (policy-semantics 8.6)."""

    namespace: str
    name: str
    port: int
    local_endpoints: int
    """Active ones on this node."""
