"""Counters with a bound on their series.

Label values come from workloads; whoever can make names could make series without end. Beyond the bound new series are
folded: counted under `other` in every label, so that sums stay right, and told in `ciliate_metrics_folded_total`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.flows.columns import Array
from services.flows.metrics.batch import LIMITS

OTHER = "other"


class Series(Collector):
    """The counters of one process. Collected when scraped."""

    def __init__(self, limit: int) -> None:
        """`limit`: series per metric."""
        self._limit = limit
        self._counters: dict[str, tuple[str, tuple[str, ...], dict[tuple[str, ...], float]]] = {}
        self._histograms: dict[str, tuple[str, tuple[str, ...], dict[tuple[str, ...], _Buckets]]] = {}
        self.folded: dict[str, int] = {}

    def declare(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        """A counter; `name` without `_total`."""
        self._counters[name] = (text, labels, {})

    def declare_histogram(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        """A histogram with Prometheus's default buckets, in seconds."""
        self._histograms[name] = (text, labels, {})

    def add(self, name: str, values: tuple[str, ...], count: float) -> None:
        """Count."""
        series = self._counters[name][2]
        key = values if values in series or len(series) < self._limit else self._folded(name, values)
        series[key] = series.get(key, 0) + count

    def observe(self, name: str, values: tuple[str, ...], counts: Array, total: float) -> None:
        """Add measurements: how many in each bucket, and their sum."""
        series = self._histograms[name][2]
        key = values if values in series or len(series) < self._limit else self._folded(name, values)
        buckets = series.setdefault(key, _Buckets())
        buckets.counts += counts
        buckets.sum += total

    def _folded(self, name: str, values: tuple[str, ...]) -> tuple[str, ...]:
        self.folded[name] = self.folded.get(name, 0) + 1
        return (OTHER,) * len(values)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for."""
        for name, (text, labels, series) in self._counters.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for values, count in list(series.items()):  # scraped in a thread, while others are added
                counter.add_metric(values, count)
            yield counter
        for name, (text, labels, histograms) in self._histograms.items():
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for values, buckets in list(histograms.items()):
                histogram.add_metric(values, buckets.rows(), buckets.sum)
            yield histogram
        folded = CounterMetricFamily(
            "ciliate_metrics_folded", "Times that a new series was counted under `other`", labels=["metric"]
        )
        for name, count in list(self.folded.items()):
            folded.add_metric([name], count)
        yield folded


class _Buckets:
    def __init__(self) -> None:
        self.counts = np.zeros(len(LIMITS) + 1, np.int64)
        self.sum = 0.0

    def rows(self) -> list[tuple[str, float]]:
        """(upper bound, how many up to it)."""
        bounds = [*(str(limit) for limit in LIMITS), "+Inf"]
        return list(zip(bounds, np.cumsum(self.counts).astype(float).tolist(), strict=True))
