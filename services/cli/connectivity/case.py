"""A case: what is applied, what is asked from where, what should come of it and be seen. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from services.cli.connectivity import objects
from services.cli.connectivity.ask import Http, Outcome, Request
from services.cli.connectivity.cluster import Document, Facts, Node, Place, Pod, url


@dataclass(frozen=True, slots=True)
class Seen:
    """A flow that the relay must have: from the asking pod, this verdict; `rule`: the policy that decided."""

    verdict: str
    rule: str = ""
    pod: str = ""
    """The name of the pod on the other end."""
    service: str = ""
    http: str = ""
    """"GET /path" of an HTTP flow."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `contains`: text that must be in what was answered, `lacks`: that must not."""

    source: Place
    request: Request
    expect: Outcome = Outcome.ANSWERED
    contains: str = ""
    lacks: str = ""
    alike: str = ""
    """Requests with the same text here must be answered by the same server."""
    seen: Seen | None = None

    def __str__(self) -> str:
        return f"{self.source}: {self.request}"


class Need(StrEnum):
    """What a case cannot do without; a cluster that lacks it skips the case."""

    TWO_NODES = "two nodes"
    IPV6 = "IPv6 addresses of pods"
    WORLD = "a web server outside of the cluster (--external-address)"
    WORLD_TELLS = "a web server outside that tells who asked"
    ASK_OUTSIDE = "a client outside of the cluster"
    ASK_NODES = "clients on the nodes"
    HOST_SERVER = "a web server on the nodes"
    LOAD_BALANCER = "a load balancer's address"
    RELAY = "a relay (--relay)"


@dataclass(frozen=True, slots=True)
class Lane:
    """One namespace of pods, as it is there. `near` is the clients' node, `far` the other one (or the same)."""

    namespace: str
    facts: Facts
    pods: Mapping[str, Pod]
    services: Mapping[str, Document]

    @property
    def client(self) -> Pod:
        return self.pods["client"]

    @property
    def stranger(self) -> Pod:
        return self.pods["stranger"]

    @property
    def near(self) -> Node:
        return next(node for node in self.facts.nodes if node.name == self.client.node)

    @property
    def far(self) -> Node:
        return next(node for node in self.facts.nodes if node.name != self.client.node)

    @property
    def servers(self) -> list[Pod]:
        """Those that there are: on the clients' node, and on another one."""
        return [self.pods[name] for name in objects.SERVERS if name in self.pods]

    @property
    def versions(self) -> list[int]:
        """The IP versions that pods have addresses of."""
        return [version for version in (4, 6) if self.client.address(version)]

    def service_addresses(self, name: str) -> list[str]:
        """Cluster addresses of a Service."""
        return [text for text in self.services[name]["spec"].get("clusterIPs") or () if text != "None"]

    def balancer_addresses(self, name: str) -> list[str]:
        """Addresses that a load balancer gave a Service."""
        status = (self.services[name].get("status") or {}).get("loadBalancer") or {}
        return [entry["ip"] for entry in status.get("ingress") or () if entry.get("ip")]

    def node_port(self, name: str, port: str = "http") -> int:
        """The port on every node."""
        return int(next(p["nodePort"] for p in self.services[name]["spec"]["ports"] if p["name"] == port))

    def reach(
        self, source: Pod, expect: Outcome = Outcome.ANSWERED, port: int = objects.HTTP, **more: Any
    ) -> list[Ask]:
        """Ask every server at every address. Answers must come from the pod that was asked."""
        return [
            Ask(
                source.place,
                Http(url(server.address(version), port, more.get("path", "/"))),
                expect,
                contains=f"server: {server.name}" if expect is Outcome.ANSWERED else "",
                seen=more.get("seen"),
            )
            for server in self.servers
            for version in self.versions
        ]

    def offers(self) -> frozenset[Need]:
        """What there is of all needs but the relay."""
        facts, found = self.facts, set()
        if "far" in self.pods:
            found.add(Need.TWO_NODES)
        if 6 in self.versions:
            found.add(Need.IPV6)
        if facts.world is not None:
            found |= {Need.WORLD} | ({Need.WORLD_TELLS} if facts.world.tells else set())
        found |= {
            need for need, kind in ((Need.ASK_OUTSIDE, "outside"), (Need.ASK_NODES, "node")) if kind in facts.can_ask
        }
        if facts.host_port:
            found.add(Need.HOST_SERVER)
        if self.balancer_addresses("echo"):
            found.add(Need.LOAD_BALANCER)
        return frozenset(found)


Asks = Callable[[Lane], Iterable[Ask]]
Objects = Callable[[Lane], Sequence[Document]]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table. Cases with `applies` change what is enforced and run alone in their lane."""

    name: str
    asks: Asks
    needs: frozenset[Need] = frozenset()
    applies: Objects | None = None


@dataclass(slots=True)
class Cases:
    """A collection that functions are put into by decorating them."""

    found: list[Case] = field(default_factory=list)

    def case(self, name: str, *needs: Need, applies: Objects | None = None) -> Callable[[Asks], Asks]:
        """The decorated function makes the requests of the case `name`."""

        def add(asks: Asks) -> Asks:
            self.found.append(Case(name, asks, frozenset(needs), applies))
            return asks

        return add

    def __iter__(self) -> Iterator[Case]:
        return iter(self.found)
