"""What the service counts. One object, made in `app.py`; gauges are read from their owners when scraped."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Metrics:
    """Counters to increase and gauges to bind."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        prefix = "ciliate_identity_"
        self.allocations = Counter(f"{prefix}allocations", "identities given out", ["kind"], registry=registry)
        self.collected = Counter(f"{prefix}collected", "unreferenced identities deleted", registry=registry)
        self.resets = Counter(f"{prefix}watch_resets", "snapshots sent to watchers", ["reason"], registry=registry)
        self.refused = Counter(f"{prefix}refused", "changes refused at the bound", ["method"], registry=registry)
        self.seconds = Histogram(
            f"{prefix}change_seconds", "time to answer a change", ["method"], registry=registry, buckets=_BUCKETS
        )

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A gauge whose value is `read()` at the time of a scrape."""
        Gauge(f"ciliate_identity_{name}", description, registry=self._registry).set_function(read)
