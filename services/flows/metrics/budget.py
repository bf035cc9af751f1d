"""Counters with a bound on their series.

Label values come from workloads; whoever can make names could make series without end. Beyond the bound new series are
folded: counted under `other` in every label, so that sums stay right, and told in `ciliate_metrics_folded_total`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

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

    def observe(self, name: str, values: tuple[str, ...], seconds: Iterable[float]) -> None:
        """Add measurements."""
        series = self._histograms[name][2]
        key = values if values in series or len(series) < self._limit else self._folded(name, values)
        series.setdefault(key, _Buckets()).add(seconds)

    def _folded(self, name: str, values: tuple[str, ...]) -> tuple[str, ...]:
        self.folded[name] = self.folded.get(name, 0) + 1
        return (OTHER,) * len(values)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for."""
        for name, (text, labels, series) in self._counters.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for values, count in series.items():
                counter.add_metric(values, count)
            yield counter
        for name, (text, labels, histograms) in self._histograms.items():
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for values, buckets in histograms.items():
                histogram.add_metric(values, buckets.rows(), buckets.sum)
            yield histogram
        folded = CounterMetricFamily(
            "ciliate_metrics_folded", "Times that a new series was counted under `other`", labels=["metric"]
        )
        for name, count in self.folded.items():
            folded.add_metric([name], count)
        yield folded


class _Buckets:
    LIMITS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, float("inf"))

    def __init__(self) -> None:
        self._counts = [0] * len(self.LIMITS)
        self.sum = 0.0

    def add(self, seconds: Iterable[float]) -> None:
        for value in seconds:
            place = next(place for place, limit in enumerate(self.LIMITS) if value <= limit)
            self._counts[place] += 1
            self.sum += value

    def rows(self) -> list[tuple[str, float]]:
        """(upper bound, how many up to it)."""
        found, total = [], 0
        for limit, count in zip(self.LIMITS, self._counts, strict=True):
            total += count
            found.append(("+Inf" if limit == float("inf") else str(limit), float(total)))
        return found
