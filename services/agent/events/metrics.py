"""Figures of the event pipeline, on a registry that is passed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.agent.events.buffer import SendBuffer
from services.agent.events.lanes import EventReader
from services.agent.events.push import RelayPusher
from services.common.pb.flow import flow_pb2
from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.flows.render import LOST_SOURCES
from services.flows.store import FlowStore

RINGS = ("events", "http_events", "name_events")


class EventMetrics(Collector):
    """Collected when scraped, so that counting costs the pipeline an addition per batch."""

    def __init__(
        self,
        registry: CollectorRegistry,
        store: FlowStore,
        buffer: SendBuffer,
        rings: Sequence[EventReader],
    ) -> None:
        self._store, self._buffer, self._rings = store, buffer, rings
        self._read = dict.fromkeys(RINGS, 0)
        self._lost: dict[int, int] = {}
        self.aggregated = 0
        """Flows that the level of aggregation leaves out."""
        self.as_hubble = False
        """Losses are told under Hubble's name as well."""
        self.pusher: RelayPusher | None = None
        registry.register(self)

    def read(self, flows: int, requests: int, messages: int) -> None:
        """Records were taken from the rings."""
        self._read["events"] += flows
        self._read["http_events"] += requests
        self._read["name_events"] += messages

    def lost(self, source: int, events: int) -> None:
        """Events were found to be lost."""
        self._lost[source] = self._lost.get(source, 0) + events

    def collect(self) -> Iterable[Metric]:
        """What Prometheus asks for."""
        read = CounterMetricFamily("ciliate_events_read", "Records taken out of a kernel ring", labels=["ring"])
        fill = GaugeMetricFamily("ciliate_events_ring_fill_ratio", "Share of a kernel ring in use", labels=["ring"])
        for name, ring in zip(RINGS, self._rings, strict=True):
            read.add_metric([name], self._read[name])
            fill.add_metric([name], ring.fill)
        lost = CounterMetricFamily("ciliate_events_lost", "Events lost on this node, by place", labels=["source"])
        losses = self._lost | {pb.AGENT_BUFFER: self._buffer.dropped_rows}
        for source, events in losses.items():
            lost.add_metric([pb.LostSource.Name(source).lower()], events)  # type: ignore[arg-type]
        if self._store.missed:
            lost.add_metric(["slow_reader"], self._store.missed)
        yield from (read, fill, lost)
        text = "Flows thrown out of this node's memory to make room"
        yield CounterMetricFamily("ciliate_flows_evicted", text, value=self._store.evicted)
        if self.as_hubble:
            yield _hubble(losses)
        yield CounterMetricFamily(
            "ciliate_flows_aggregated", "Flows left out by the level of aggregation", value=self.aggregated
        )
        yield GaugeMetricFamily("ciliate_flows_stored", "Flows kept on this node", value=self._store.flows)
        yield GaugeMetricFamily(
            "ciliate_push_buffer_bytes", "Waiting for the relay's acknowledgement", value=self._buffer.bytes
        )
        yield GaugeMetricFamily(
            "ciliate_push_connected",
            "1 while the stream to the relay is open",
            value=float(self.pusher is not None and self.pusher.connected),
        )
        yield CounterMetricFamily(
            "ciliate_push_acknowledged_flows",
            "Flows that the relay has stored",
            value=self.pusher.acknowledged_rows if self.pusher else 0,
        )


def _hubble(losses: Mapping[int, int]) -> Metric:
    found = CounterMetricFamily("hubble_lost_events", "Events lost on this node, by place", labels=["source"])
    sums: dict[str, int] = {}
    for source, events in losses.items():
        place = LOST_SOURCES.get(source, flow_pb2.UNKNOWN_LOST_EVENT_SOURCE)
        name = flow_pb2.LostEventSource.Name(place).lower()
        sums[name] = sums.get(name, 0) + events
    for name, events in sums.items():
        found.add_metric([name], events)
    return found
