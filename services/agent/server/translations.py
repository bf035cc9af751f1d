"""The translation table for people and for Prometheus: how full it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.agent.datapath.gc import Collector as TableCollector
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.nat_gc import NatCollector
from services.agent.server.knowledge import Knowledge
from services.agent.server.state import AgentState, component
from services.common.pb.agent.v1 import agent_pb2 as pb

PRESSURE = 0.9
"""Fill level from which the status says so: beyond it the kernel throws away what was not used for longest."""


class Translations(Collector):
    """Registers itself on the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry, collector: TableCollector) -> None:
        self._collector, self._max = collector, collector.max_entries
        registry.register(self)

    def check(self) -> pb.Component:
        """Degraded while the table is nearly full."""
        entries = self._collector.entries
        text = f"{entries} of {self._max} entries (nat_max), two for a connection: old ones are thrown away"
        return component("translations", {"table": text} if entries >= PRESSURE * self._max else {})

    def collect(self) -> Iterable[Metric]:
        """What Prometheus asks for."""
        yield GaugeMetricFamily(
            "ciliate_nat_entries", "Translations at the last sweep, two for a connection", value=self._collector.entries
        )
        yield GaugeMetricFamily("ciliate_nat_max_entries", "Translations that the table can have", value=self._max)
        yield CounterMetricFamily(
            "ciliate_nat_collected", "Translations whose time was over", value=self._collector.removed_total
        )


def watch_translations(
    maps: Mapping[str, PinnedMap], knowledge: Knowledge, state: AgentState, registry: CollectorRegistry
) -> NatCollector:
    """The collector of the table, with what it knows in the status and in the figures."""
    collector = NatCollector(maps["nat_table"], live_backends=knowledge.live_backends)
    state.checks.append(Translations(registry, collector).check)
    return collector
