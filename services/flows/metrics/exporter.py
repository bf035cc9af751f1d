"""Counts every batch that passes."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from services.flows.columns import STORED, Array, Columns, length, zeros
from services.flows.dictionary import Dictionaries
from services.flows.metrics.batch import LIMITS, Batch, Facts, measured
from services.flows.metrics.budget import Series
from services.flows.metrics.config import Group
from services.flows.metrics.contexts import Contexts, build
from services.flows.metrics.family import Family
from services.flows.metrics.family import Series as RowSeries
from services.flows.metrics.groups import GROUPS


class FlowMetrics:
    """Metrics of the groups that are wanted, on a registry."""

    def __init__(self, registry: CollectorRegistry, groups: Sequence[Group], limit: int = 10_000) -> None:
        """`limit`: series per metric; see `budget`."""
        self._series, self._facts = Series(limit), Facts()
        self._families: list[tuple[Family, Group, Contexts]] = []
        for group in groups:
            contexts = build(group.source, group.destination, group.labels)
            for family in GROUPS[group.name]:
                declare = self._series.declare_histogram if family.seconds else self._series.declare
                declare(family.name, family.text, (*family.label_names(group.options), *contexts.labels))
                self._families.append((family, group, contexts))
        if groups:
            registry.register(self._series)

    def observe(self, columns: Columns, dictionaries: Dictionaries) -> None:
        """Count a batch of rows; missing columns are zeros."""
        if not self._families or not length(columns):
            return
        rows = length(columns)
        complete = {name: columns[name] if name in columns else zeros(name, rows) for name in STORED}
        batch = Batch(complete, dictionaries, self._facts)
        for family, group, contexts in self._families:
            keys = contexts.keys(batch, swapped=family.swapped)
            for series in family.series(batch, group.options):
                self._count(batch, family, contexts, series, [*series.keys, *keys])

    def _count(
        self, batch: Batch, family: Family, contexts: Contexts, series: RowSeries, keys: Sequence[Array]
    ) -> None:
        own = len(series.keys)
        seconds = family.seconds(batch) if family.seconds else None
        buckets = len(LIMITS) + 1 if family.seconds else 1
        for numbers, counts, total in measured(keys, series.rows, seconds, buckets):
            values = (*series.labels(numbers[:own]), *contexts.texts(numbers[own:]))
            if family.seconds:
                self._series.observe(family.name, values, counts, total)
            else:
                self._series.add(family.name, values, int(counts[0]))
