"""What a node's configuration says about load balancing, and what is known of the node itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from services.model.addresses import IPAddress
from services.model.services import ZONE_LABEL

MAGLEV_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)
"""Primes; a table should have 100 times as many entries as a Service has backends."""


class Algorithm(StrEnum):
    """How a new connection from outside gets its backend."""

    RANDOM = "random"
    MAGLEV = "maglev"


class Forwarding(StrEnum):
    """How packets from outside reach a backend on another node."""

    SNAT = "snat"
    DSR = "dsr"
    HYBRID = "hybrid"
    """DSR for TCP, SNAT for the rest."""


@dataclass(frozen=True, slots=True)
class LbOptions:
    """The same on every node."""

    algorithm: Algorithm = Algorithm.RANDOM
    maglev_size: int = 16381
    maglev_seed: int = 0x43494C49
    forwarding: Forwarding = Forwarding.SNAT
    annotations: bool = False
    """Whether Services may choose algorithm and forwarding for themselves."""
    topology: bool = True
    """Whether hints of EndpointSlices count."""
    external_cluster_ips: bool = False
    """Whether the outside may use cluster addresses."""
    source_ranges_everywhere: bool = False
    """Whether loadBalancerSourceRanges guard node ports and external addresses, too."""
    node_ports: tuple[int, int] = (30000, 32767)
    proxy_name: str = ""
    """Only Services that name this proxy; '' = those that name none."""
    max_frontends: int = 131_072
    max_backends: int = 262_144


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """This node: what makes frontends and backends local."""

    name: str = ""
    addresses: tuple[IPAddress, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def zone(self) -> str:
        """Where it stands; '' = unknown."""
        return self.labels.get(ZONE_LABEL, "")
