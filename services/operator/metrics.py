"""What Prometheus gets of the operator."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.operator.leader import Leader
from services.operator.state import State
from services.operator.writes import Writer


class OperatorMetrics:
    """A collector: everything is read when it is asked for."""

    def __init__(self, registry: CollectorRegistry, state: State, leader: Leader, writer: Writer) -> None:
        self._state, self._leader, self._writer = state, leader, writer
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield GaugeMetricFamily(
            "ciliate_operator_leading", "1 while this replica leads", value=float(self._leader.leading)
        )
        yield GaugeMetricFamily(
            "ciliate_operator_problems", "Things that could not be read or written", value=len(self._state.problems())
        )
        if tidier := self._state.tidier:
            yield GaugeMetricFamily(
                "ciliate_operator_leaked_references",
                "References to identities that no pod explains",
                value=len(tidier.leaked),
            )
            yield CounterMetricFamily(
                "ciliate_operator_nodes_forgotten", "Nodes without a Node object", value=tidier.forgotten
            )
        objects = GaugeMetricFamily("ciliate_operator_objects", "Objects known, by kind", labels=["kind"])
        for cache in self._state.caches.values():
            objects.add_metric([cache.resource.kind], len(cache))
        yield objects
        writes = CounterMetricFamily("ciliate_operator_writes", "Objects written", labels=["verb", "kind"])
        for what, count in sorted(self._writer.done.items()):
            writes.add_metric(what.split(" ", 1), count)
        yield writes
        rounds = CounterMetricFamily("ciliate_operator_rounds", "Plans carried out", labels=["chore"])
        for chore in self._state.chores:
            rounds.add_metric([chore.name], chore.rounds)
        yield rounds
        seconds = GaugeMetricFamily("ciliate_operator_plan_seconds", "What the last plan took", labels=["chore"])
        for chore in self._state.chores:
            seconds.add_metric([chore.name], chore.plan_seconds)
        yield seconds
