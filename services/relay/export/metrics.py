"""The process's Prometheus registry as OpenTelemetry metrics: one source of figures, two ways out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)
from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.samples import Sample

from services.relay.export.logs import attributes

CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def convert(registry: CollectorRegistry, start_ns: int, now_ns: int) -> list[Metric]:
    """Every family of the registry; counters and histograms count from `start_ns`."""
    return [metric for family in registry.collect() if (metric := _convert(family, start_ns, now_ns)) is not None]


def _convert(family: Family, start_ns: int, now_ns: int) -> Metric | None:
    match family.type:
        case "counter":
            samples = [sample for sample in family.samples if sample.name.endswith("_total")]
            points = [_number(sample, start_ns, now_ns) for sample in samples]
            total = Sum(data_points=points, aggregation_temporality=CUMULATIVE, is_monotonic=True)
            return Metric(name=f"{family.name}_total", description=family.documentation, sum=total) if points else None
        case "gauge" | "unknown":
            points = [_number(sample, 0, now_ns) for sample in family.samples]
            gauge = Gauge(data_points=points)
            return Metric(name=family.name, description=family.documentation, gauge=gauge) if points else None
        case "histogram":
            found = _histograms(family.samples, start_ns, now_ns)
            histogram = Histogram(data_points=found, aggregation_temporality=CUMULATIVE)
            unit = "s" if family.name.endswith("_seconds") else ""
            text = family.documentation
            return Metric(name=family.name, description=text, unit=unit, histogram=histogram) if found else None
        case _:
            return None


def _number(sample: Sample, start_ns: int, now_ns: int) -> NumberDataPoint:
    return NumberDataPoint(
        attributes=attributes(sorted(sample.labels.items())),
        start_time_unix_nano=start_ns,
        time_unix_nano=now_ns,
        as_double=sample.value,
    )


def _histograms(samples: Iterable[Sample], start_ns: int, now_ns: int) -> list[HistogramDataPoint]:
    """Prometheus tells how many up to each bound; OTLP wants how many in each bucket."""
    series: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for sample in samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        if sample.name.endswith(("_bucket", "_sum", "_count")):
            series.setdefault(labels, {})[sample.labels.get("le", sample.name.rsplit("_", 1)[1])] = sample.value
    return [_histogram(labels, values, start_ns, now_ns) for labels, values in series.items()]


def _histogram(
    labels: Iterable[tuple[str, str]], values: Mapping[str, float], start_ns: int, now_ns: int
) -> HistogramDataPoint:
    buckets = sorted((float(bound), count) for bound, count in values.items() if bound not in ("sum", "count"))
    counts = [int(count - before) for (_, count), (_, before) in zip(buckets, [(0.0, 0.0), *buckets], strict=False)]
    return HistogramDataPoint(
        attributes=attributes(labels),
        start_time_unix_nano=start_ns,
        time_unix_nano=now_ns,
        count=int(buckets[-1][1]) if buckets else int(values.get("count", 0)),
        sum=values.get("sum", 0.0),
        explicit_bounds=[bound for bound, _ in buckets if not math.isinf(bound)],
        bucket_counts=counts,
    )
