"""Counts every batch that passes."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from services.flows.columns import STORED, Columns, length, zeros
from services.flows.dictionary import Dictionaries
from services.flows.metrics.batch import Batch, Facts, counted
from services.flows.metrics.budget import Series
from services.flows.metrics.config import Group
from services.flows.metrics.contexts import Contexts, build
from services.flows.metrics.families import GROUPS, Family


class FlowMetrics:
    """Metrics of the groups that are wanted, on a registry."""

    def __init__(self, registry: CollectorRegistry, groups: Sequence[Group], limit: int = 10_000) -> None:
        """`limit`: series per metric; see `budget`."""
        self._series, self._facts = Series(limit), Facts()
        self._families: list[tuple[Family, Group, Contexts]] = []
        for group in groups:
            contexts = build(group.source, group.destination, group.labels)
            for family in GROUPS[group.name]:
                self._series.declare(family.name, family.text, (*family.label_names(group.options), *contexts.labels))
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
            keys = contexts.keys(batch)
            for series in family.series(batch, group.options):
                own = len(series.keys)
                for numbers, count in counted([*series.keys, *keys], series.rows):
                    values = (*series.labels(numbers[:own]), *contexts.texts(numbers[own:]))
                    self._series.add(family.name, values, count)
