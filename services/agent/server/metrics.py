"""The agent's own figures for Prometheus, read when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.agent.calc.services.problems import ProblemKind
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.sink import DatapathSink
from services.agent.driver import Driver
from services.agent.server.cni import CniServer
from services.agent.server.knowledge import Knowledge
from services.agent.server.state import AgentState
from services.agent.sources.base import Mailbox, Source

DELAYS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class AgentMetrics(Collector):
    """Registers itself on the registry that is passed in."""

    def __init__(
        self,
        registry: CollectorRegistry,
        state: AgentState,
        knowledge: Knowledge,
        driver: Driver,
        mailbox: Mailbox,
        sink: DatapathSink,
        maps: Mapping[str, PinnedMap],
        cni: CniServer,
        sources: Iterable[Source],
    ) -> None:
        self._state, self._knowledge, self._driver, self._mailbox = state, knowledge, driver, mailbox
        self._sink, self._maps, self._cni, self._sources = sink, maps, cni, tuple(sources)
        self._delay = Histogram(
            "ciliate_policy_implementation_delay_seconds",
            "From the arrival of a changed policy to its being in force",
            registry=registry,
            buckets=DELAYS,
        )
        driver.on_policies = self._policies
        registry.register(self)

    def _policies(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self._delay.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """What Prometheus asks for."""
        manager = self._knowledge.manager
        yield _gauge("ciliate_agent_ready", "1 once every endpoint is enforced", float(self._state.ready))
        yield _gauge("ciliate_agent_ready_seconds", "From process start to ready", self._state.ready_after)
        yield _gauge("ciliate_endpoints", "Pod interfaces of this node", len(manager.endpoints))
        yield _gauge("ciliate_addresses_used", "Pod addresses in use", sum(pool.used for pool in manager.ipam.pools))
        yield _gauge("ciliate_updates_waiting", "Updates that wait for the calculation", len(self._mailbox))
        yield _counter("ciliate_calculations", "Batches of updates that were calculated", self._driver.batches)
        reclaimed = manager.references.reclaimed
        yield _counter("ciliate_references_reclaimed", "Identities held that nothing used, given back", reclaimed)
        yield _counter("ciliate_map_changes", "Map entries written or removed", self._driver.changes)
        yield _gauge("ciliate_map_entries_refused", "Entries that the kernel did not take yet", self._sink.pending)
        yield _gauge(
            "ciliate_policy_overflows", "Policy ids without room in the map", len(self._knowledge.engine.pressure())
        )
        yield from self._service_problems()
        yield from self._map_sizes()
        problems = GaugeMetricFamily("ciliate_source_problems", "What a source complains about", labels=["source"])
        for source in self._sources:
            problems.add_metric([source.name], len(source.errors))
        yield problems
        calls = CounterMetricFamily("ciliate_cni_calls", "CNI calls, by outcome", labels=["command", "outcome"])
        for (command, outcome), count in self._cni.calls.items():
            calls.add_metric([command, outcome], count)
        yield calls

    def _service_problems(self) -> Iterable[Metric]:
        found = Counter(str(problem.kind) for _, problem in self._knowledge.engine.load_balancing.problems())
        metric = GaugeMetricFamily("ciliate_service_problems", "What is wrong with Services, by kind", labels=["kind"])
        for kind in ProblemKind:
            metric.add_metric([str(kind)], found[str(kind)])
        yield metric

    def _map_sizes(self) -> Iterable[Metric]:
        entries = GaugeMetricFamily("ciliate_map_entries", "Entries that a map should have", labels=["map"])
        sizes = GaugeMetricFamily("ciliate_map_max_entries", "Entries that a map can have", labels=["map"])
        for name, count in self._knowledge.map_entries().items():
            entries.add_metric([name], count)
            sizes.add_metric([name], self._maps[name].max_entries)
        yield entries
        yield sizes
        pressure = GaugeMetricFamily("ciliate_map_pressure", "Entries over what a map can have, 0 to 1", labels=["map"])
        for name, count in self._knowledge.map_entries().items():
            pressure.add_metric([name], count / max(1, self._maps[name].max_entries))
        yield pressure


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
