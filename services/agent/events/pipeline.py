"""The flow pipeline of a node, in one object.

    rings (kernel) --RingReader--> records --decode + Enricher--> columns --+--> FlowStore --> the node's Observer
    lost counters ------------------------> exact loss counts --------------+--> SendBuffer --RelayPusher--> relay

The agent's app makes one, gives `observer()` to its gRPC servers, and runs `run()` in its task group.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from services.agent.events.getters import LostCounters, Names
from services.common.tls import TlsFiles
from services.flows.entries import NodeRef


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """What the agent's configuration says about flows."""

    node: NodeRef
    version: str
    capacity: int = 131_072
    """Flows kept for the node's own Observer."""
    buffer_bytes: int = 32 << 20
    """Bound of what waits for the relay's acknowledgement; beyond it flows are dropped and counted."""
    relay_target: str = ""
    """"host:port" or "unix:///path"; empty = no relay."""
    tls: TlsFiles | None = None
    """None = plaintext."""
    observer_address: str = ""
    """Where the node's own Observer can be reached, told to the relay; empty = nowhere."""


class FlowPipeline:
    """Reads both rings until cancelled; `run` raises only for a defect (a ring whose layout is not ours)."""

    def __init__(
        self,
        config: PipelineConfig,
        names: Names,
        flow_ring_fd: int,
        http_ring_fd: int,
        lost: LostCounters,
        registry: CollectorRegistry,
    ) -> None:
        self.config = config
