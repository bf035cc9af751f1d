"""Services and their endpoints, as the agent needs them (policy-semantics 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from services.model.addresses import IPAddress, IPNetwork
from services.model.keys import ObjectKey

HEADLESS_LABEL = "service.kubernetes.io/headless"
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
ZONE_LABEL = "topology.kubernetes.io/zone"
DEFAULT_AFFINITY_SECONDS = 10_800
MAX_AFFINITY_SECONDS = 86_400


class TrafficPolicy(StrEnum):
    """Which endpoints serve: all, or those of the node that the packet came to."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service. `target_port` is a number or a container port's name."""

    name: str
    port: int
    protocol: int
    target_port: int | str
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A Service; `cluster_ips` is empty for headless and ExternalName ones."""

    namespace: str
    name: str
    type: str = "ClusterIP"
    cluster_ips: tuple[IPAddress, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    external_ips: tuple[IPAddress, ...] = ()
    ingress_ips: tuple[IPAddress, ...] = ()
    """Of status.loadBalancer, without those that the load balancer serves itself (ipMode Proxy)."""
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    affinity_seconds: int = 0
    """How long a client keeps its backend; 0 = no session affinity."""
    source_ranges: tuple[IPNetwork, ...] = ()
    health_check_node_port: int = 0
    created: str = ""
    """creationTimestamp: of two that want one address, the older one has it."""

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("Service", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint of an EndpointSlice; the conditions' nil defaults are already resolved."""

    addresses: tuple[IPAddress, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Backends of one Service. `ports` maps the Service port's name to (number, protocol)."""

    namespace: str
    name: str
    service: str
    ports: tuple[tuple[str, int, int], ...] = ()
    """(name, port, protocol) triples; the name matches the Service port's name."""
    endpoints: tuple[SliceEndpoint, ...] = ()
    family: int = 0
    """4 or 6 as its addressType says; 0 = it does not."""

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("EndpointSlice", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class HostPort:
    """A container port that is reachable at its node's addresses, or at `host_ip` only."""

    port: int
    container_port: int
    protocol: int
    host_ip: IPAddress | None = None
