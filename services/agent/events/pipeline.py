"""The flow pipeline of a node, in one object.

    rings (kernel) --RingReader--> records --decode + Enricher--> columns --+--> FlowStore --> the node's Observer
    lost counters ----LostWatch---> exact loss counts ---------------------+--> SendBuffer --RelayPusher--> relay

The agent's app makes one, registers `observer` on its gRPC servers, and runs `run()` in its task group.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from prometheus_client import CollectorRegistry

from services.agent.abi.events import FLOW_EVENT, HTTP_EVENT, NAME_EVENT, EventType
from services.agent.events import decode
from services.agent.events.aggregation import Aggregation, aggregate
from services.agent.events.buffer import SendBuffer
from services.agent.events.clock import WallClock
from services.agent.events.enrich import Enricher
from services.agent.events.getters import LostCounters, Names
from services.agent.events.lanes import open_events
from services.agent.events.losses import LostWatch
from services.agent.events.metrics import EventMetrics
from services.agent.events.processes import ProcessTable
from services.agent.events.push import RelayPusher
from services.agent.events.reader import RingReader
from services.agent.events.wake import RingWaker
from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.common.tls import TlsFiles, channel
from services.flows.agent_events import AgentEvents
from services.flows.columns import Array, Columns, length
from services.flows.entries import NodeRef
from services.flows.metrics.config import Group
from services.flows.metrics.exporter import FlowMetrics
from services.flows.observer import Observer
from services.flows.store import FlowStore

CHUNK = 8192
"""Records per batch: a megabyte, so that the columns are cut out of the processor's cache."""
ACTIVE_SECONDS = 0.005
IDLE_SECONDS = 0.025
"""Nothing came the last time: look less often. The kernel still calls when a ring fills up."""
LOST_SECONDS = 0.5


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
    aggregation: Aggregation = Aggregation.CONNECTIONS
    metrics: Sequence[Group] = ()
    """Metrics of flows that this node counts itself; the relay counts those of all nodes."""
    metrics_series: int = 10_000
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
        name_ring_fd: int,
        lost: LostCounters,
        registry: CollectorRegistry,
        events: AgentEvents | None = None,
    ) -> None:
        """The descriptors are the maps `events`, `http_events` and `name_events`; they stay the caller's to close."""
        self.config = config
        self.store = FlowStore(config.capacity)
        events = events or AgentEvents(config.node.absolute)
        version = f"ciliate v{config.version}"
        self.observer = Observer(self.store, config.node, version, config.version, events=events)
        self.buffer = SendBuffer(self.store.dictionaries, config.buffer_bytes)
        self.pusher: RelayPusher | None = None
        self._flows = open_events(flow_ring_fd, FLOW_EVENT)
        self._requests = open_events(http_ring_fd, HTTP_EVENT)
        self._messages = RingReader.open(name_ring_fd, NAME_EVENT)
        self._lost = LostWatch(lost)
        self._clock = WallClock()
        self._take_processes: Callable[[], None] = lambda: None
        self._enricher = Enricher(self.store.dictionaries, names, config.node.cluster)
        self._node = self.store.node(config.node)
        self._flow_metrics = FlowMetrics(registry, config.metrics, config.metrics_series)
        self._metrics = EventMetrics(registry, self.store, self.buffer, (self._flows, self._requests, self._messages))
        self._metrics.as_hubble = bool(config.metrics)

    def name_processes(self, table: ProcessTable, take: Callable[[], None]) -> None:
        """Flows get processes from `table`, which `take` brings up to date; called before `run`."""
        self._enricher.process_table, self._take_processes = table, take

    async def run(self) -> None:
        """Read, keep, push, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self.config.relay_target:
                self.pusher = RelayPusher(
                    self.buffer,
                    self.store.dictionaries,
                    lambda: channel(self.config.relay_target, self.config.tls, "relay"),
                    self.config.node,
                    self.config.version,
                    self.config.observer_address,
                )
                self._metrics.pusher = self.pusher
                tasks.create_task(self.pusher.run(), name="events:push")
            tasks.create_task(self._read_rings(), name="events:read")
            tasks.create_task(self._watch_losses(), name="events:lost")

    async def _read_rings(self) -> None:
        rings = (self._flows, self._requests, self._messages)
        with RingWaker(ring.fd for ring in rings if ring.wakes) as waker:
            while True:
                read = self.drain_once()
                if read >= CHUNK:
                    await asyncio.sleep(0)  # more is waiting: let the others have a turn, then go on
                else:
                    await waker.wait(ACTIVE_SECONDS if read else IDLE_SECONDS)

    async def _watch_losses(self) -> None:
        while True:
            await asyncio.sleep(LOST_SECONDS)
            self.count_losses()

    def drain_once(self) -> int:
        """Take up to a chunk from each ring; returns the records taken. Raises `RingLayoutError`."""
        # Connections follow the answers that opened them: those are read first, and decoded first.
        messages, flows, requests = self._messages.read(CHUNK), self._flows.read(CHUNK), self._requests.read(CHUNK)
        taken = len(messages) + len(flows) + len(requests)
        if taken:
            self._take_processes()  # after the records: whose sockets these are has been told before
            self._enricher.refresh(time.monotonic_ns())
            good_flows = decode.readable(flows, EventType.NEW, EventType.VERDICT_CHANGE)
            good_requests = decode.readable(requests, EventType.HTTP_REQUEST, EventType.HTTP_REQUEST)
            good_messages = decode.readable(messages, EventType.DNS_QUERY, EventType.TLS_HELLO)
            unreadable = taken - len(good_flows) - len(good_requests) - len(good_messages)
            if unreadable:
                self._lose(pb.UNREADABLE, 0, unreadable)
            self._keep(good_flows, good_requests, good_messages)
            self._metrics.read(len(flows), len(requests), len(messages))
        return taken

    def add(self, records: Array) -> None:
        """Take `FLOW_EVENT` records that no ring carried: the conntrack collector's close records."""
        self._enricher.refresh(time.monotonic_ns())
        for start in range(0, len(records), CHUNK):
            self._keep(records[start : start + CHUNK], records[:0], records[:0])

    def count_losses(self) -> None:
        """Tell what the kernel could not write since the last call."""
        for cpu, events in self._lost.news():
            self._lose(pb.KERNEL_RING, cpu, events)

    def _keep(self, flows: Array, requests: Array, messages: Array) -> None:
        batches: list[Columns] = []
        if len(messages):
            batches.append(decode.names(messages, self._enricher, self._clock.convert))
        if len(flows):
            batches.append(decode.connections(flows, self._enricher, self._clock.convert))
        if len(requests):
            batches.append(decode.requests(requests, self._enricher, self._clock.convert))
        if not batches:
            return
        columns, left_out = aggregate(reduce(decode.by_time, batches), self.config.aggregation)
        self._metrics.aggregated += left_out
        if not length(columns):
            return
        self.store.append(columns, self._node)
        self._flow_metrics.observe(columns, self.store.dictionaries)
        if self.pusher is not None:
            self.buffer.add(columns, self._clock.now())
            self.pusher.wake()

    def _lose(self, source: int, cpu: int, events: int) -> None:
        now = self._clock.now()
        self.store.append_lost(self._node, source, cpu, events, now, now)
        self._metrics.lost(source, events)
        if self.pusher is not None:
            self.buffer.lose(source, cpu, events, now)
            self.pusher.wake()

    def close(self) -> None:
        """Unmap the rings; after `run` has ended."""
        self._flows.close()
        self._requests.close()
        self._messages.close()
