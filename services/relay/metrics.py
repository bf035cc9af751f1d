"""The relay's figures, on a registry that is passed in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from services.common.pb.flow import flow_pb2
from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.flows.history.history import Figures, History
from services.flows.render import LOST_SOURCES
from services.flows.store import FlowStore


class IngestMetrics:
    """Counted per batch, not per flow."""

    def __init__(self, registry: CollectorRegistry, store: FlowStore) -> None:
        self._flows = Counter("ciliate_relay_flows_stored", "Flows stored", ["node"], registry=registry)
        self._batches = Counter("ciliate_relay_batches", "Batches stored", ["node"], registry=registry)
        self._refused = Counter(
            "ciliate_relay_batches_refused", "Batches that could not be read", ["node"], registry=registry
        )
        self._lost = Counter(
            "hubble_lost_events", "Events lost before they came here, by place", ["source"], registry=registry
        )
        registry.register(_StoreCounters(store))
        held = Gauge("ciliate_relay_flows_held", "Flows in the store", registry=registry)
        held.set_function(lambda: float(store.flows))
        parties = Gauge("ciliate_relay_parties", "Distinct flow ends in the store", registry=registry)
        parties.set_function(lambda: float(len(store.dictionaries.parties)))
        self.connected = Gauge("ciliate_relay_agents_connected", "Agents with an open stream", registry=registry)

    def stored(self, node: str, batch: pb.Batch) -> None:
        """A batch is in the store."""
        self._flows.labels(node).inc(batch.rows)
        self._batches.labels(node).inc()
        for lost in batch.lost:
            source = LOST_SOURCES.get(lost.source, flow_pb2.UNKNOWN_LOST_EVENT_SOURCE)
            self._lost.labels(flow_pb2.LostEventSource.Name(source).lower()).inc(lost.events)

    def refused(self, node: str) -> None:
        """A batch could not be read."""
        self._refused.labels(node).inc()


class _StoreCounters(Collector):
    """What the store threw away, and what of it somebody was still waiting for."""

    def __init__(self, store: FlowStore) -> None:
        self._store = store

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One sample each."""
        text = "Flows thrown out of memory to make room"
        yield CounterMetricFamily("ciliate_relay_flows_evicted", text, value=self._store.evicted)
        text = "Events that followers did not get: they were slower than the store"
        yield CounterMetricFamily("ciliate_relay_events_missed", text, value=self._store.missed)


def watch_history(registry: CollectorRegistry, history: History) -> None:
    """Gauges and counters of the flows on disk."""
    figures = history.figures
    for name, text in (("files", "Files of flows"), ("rows", "Flows on disk"), ("bytes", "Size of the flows on disk")):
        gauge = Gauge(f"ciliate_relay_history_{name}", text, registry=registry)
        gauge.set_function(partial(getattr, figures, name))
    registry.register(_Counters(figures))


class _Counters(Collector):
    """What only grows, kept elsewhere."""

    _TEXTS = {
        "unwritten": "Flows thrown out of memory before they were on disk",
        "failures": "Writes that failed; they are tried again",
        "broken": "Files that could not be read and were set aside",
        "expired": "Files removed for their age or the space",
    }

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One sample each."""
        for name, text in self._TEXTS.items():
            yield CounterMetricFamily(f"ciliate_relay_history_{name}", text, value=getattr(self._figures, name))
