"""Services and their endpoints, as the agent needs them (policy-semantics 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import overload

from services.model.addresses import IPAddress, IPNetwork, from_bytes, to_bytes
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


_Traits = tuple[int, bool, bool, bool, str, tuple[str, ...], tuple[str, ...]]
"""How many addresses an endpoint has, and everything else that it is: few different ones."""


@lru_cache(1 << 13)
def _shared(traits: _Traits) -> _Traits:
    return traits


class PackedEndpoints(Sequence[SliceEndpoint]):
    """Endpoints in an eighth of the memory: a cluster has as many as pods. Equal to a tuple of the same."""

    __slots__ = ("_addresses", "_traits")

    def __init__(self, endpoints: Iterable[SliceEndpoint]) -> None:
        found = tuple(endpoints)
        self._addresses = b"".join(to_bytes(address) for each in found for address in each.addresses)
        self._traits = tuple(
            _shared(
                (
                    len(each.addresses),
                    each.ready,
                    each.serving,
                    each.terminating,
                    each.node,
                    each.zone_hints,
                    each.node_hints,
                )
            )
            for each in found
        )

    def __iter__(self) -> Iterator[SliceEndpoint]:
        at = 0
        for count, *traits in self._traits:
            raw, at = self._addresses[at : at + 16 * count], at + 16 * count
            addresses = tuple(from_bytes(raw[first : first + 16]) for first in range(0, len(raw), 16))
            yield SliceEndpoint(addresses, *traits)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._traits)

    @overload
    def __getitem__(self, index: int) -> SliceEndpoint: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[SliceEndpoint, ...]: ...

    def __getitem__(self, index: int | slice) -> SliceEndpoint | tuple[SliceEndpoint, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedEndpoints):
            return self._addresses == other._addresses and self._traits == other._traits
        return tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Backends of one Service. `ports` maps the Service port's name to (number, protocol)."""

    namespace: str
    name: str
    service: str
    ports: tuple[tuple[str, int, int], ...] = ()
    """(name, port, protocol) triples; the name matches the Service port's name."""
    endpoints: Sequence[SliceEndpoint] = ()
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
