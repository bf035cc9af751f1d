"""Sends flows and figures to an OpenTelemetry collector (OTLP 1.x over gRPC), and never makes anybody wait for it.

Flows that are wanted are kept by number in a bounded queue and rendered when they are sent. A collector that is away or
busy is tried again with growing pauses, for as long as it takes. What the bound drops or the collector refuses counts.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics, ScopeMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.log import get_logger
from services.common.retry import Backoff
from services.flows.columns import DICTIONARY_OF, STORED, Columns, length, take, zeros
from services.flows.dictionary import Dictionaries, Uses
from services.flows.render import Renderer
from services.relay.export import logs, metrics
from services.relay.export.target import Target
from services.relay.export.wanted import Wanted

log = get_logger("otlp")

QUEUE_ROWS = 65_536
BATCH_ROWS = 512
TIMEOUT_S = 10.0
PAUSE_S, MAX_PAUSE_S = 0.5, 15.0
SCOPE = "ciliate.flows"
RETRYABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
)
"""What the protocol says is worth another try."""


@dataclass(slots=True)
class Figures:
    """Flows: offered = sent + dropped + rejected + failed + waiting."""

    offered: int = 0
    sent: int = 0
    dropped: int = 0
    rejected: int = 0
    failed: int = 0
    metric_sets: int = 0
    metric_failures: int = 0


@dataclass(slots=True)
class _Waiting:
    columns: Columns
    node: int
    uses: Uses = field(repr=False)


class Exporter(Collector):
    """`offer` takes batches as they are stored; `run` sends until cancelled."""

    def __init__(
        self,
        target: Target,
        wanted: Wanted,
        interval_s: float,
        dictionaries: Dictionaries,
        registry: CollectorRegistry,
        resource: dict[str, str],
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """`interval_s`: between metric exports. `resource`: what sends, by semantic convention."""
        self._target, self._wanted, self._interval_s = target, wanted, interval_s
        self._dictionaries, self._registry, self._now = dictionaries, registry, now
        self._resource = Resource(attributes=logs.attributes(resource.items()))
        self._scope = InstrumentationScope(name=SCOPE, version=resource.get("service.version", ""))
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0
        self._news = asyncio.Event()
        self._started = now()
        self.figures = Figures()
        registry.register(self)

    def offer(self, columns: Columns, node: int) -> None:
        """Queue the rows that are wanted; those beyond the bound are dropped and counted."""
        index = self._wanted.rows(columns)
        room = QUEUE_ROWS - self._rows
        self.figures.offered += len(index)
        self.figures.dropped += max(0, len(index) - room)
        index = index[:room]
        if not len(index):
            return
        rows = take(columns, index)
        uses = Uses(self._dictionaries)
        for name, dictionary in DICTIONARY_OF.items():
            if name in rows:
                uses.add(dictionary, rows[name])
        self._dictionaries.nodes.retain(np.array([node]))
        self._waiting.append(_Waiting(rows, node, uses))
        self._rows += len(index)
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with self._target.channel() as channel, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_flows(channel), name="otlp: flows")
            tasks.create_task(self._send_metrics(channel), name="otlp: metrics")

    async def _send_flows(self, channel: grpc.aio.Channel) -> None:
        stub = LogsServiceStub(channel)  # type: ignore[no-untyped-call]
        renderer = Renderer(self._dictionaries, "")
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                batch = self._waiting[0]
                for columns in _chunks(batch):
                    await self._send_chunk(stub, renderer, columns)
                    self._rows -= length(columns)
                self._waiting.popleft()
                batch.uses.release()
                self._dictionaries.nodes.release(np.array([batch.node]))

    async def _send_chunk(self, stub: LogsServiceStub, renderer: Renderer, columns: Columns) -> None:
        now, facets = self._now(), np.zeros(length(columns), np.uint8)
        records = [logs.record(found.flow, now) for found in renderer.responses(columns, facets)]
        scoped = ScopeLogs(scope=self._scope, log_records=records)
        request = ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=self._resource, scope_logs=[scoped])])
        async for attempt in Backoff(PAUSE_S, MAX_PAUSE_S):
            try:
                answer = await stub.Export(request, timeout=TIMEOUT_S, metadata=self._target.metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRYABLE:
                    self.figures.failed += len(records)
                    log.warning("flows refused by the collector", flows=len(records), error=error.details())
                    return
                if not attempt:
                    log.warning("collector away, flows wait", waiting=self._rows, error=error.details())
            else:
                rejected = min(len(records), max(0, answer.partial_success.rejected_log_records))
                self.figures.rejected += rejected
                self.figures.sent += len(records) - rejected
                return

    async def _send_metrics(self, channel: grpc.aio.Channel) -> None:
        stub = MetricsServiceStub(channel)  # type: ignore[no-untyped-call]
        while True:
            found = metrics.convert(self._registry, self._started, self._now())
            scoped = ScopeMetrics(scope=self._scope, metrics=found)
            whole = ResourceMetrics(resource=self._resource, scope_metrics=[scoped])
            try:
                await stub.Export(
                    ExportMetricsServiceRequest(resource_metrics=[whole]),
                    timeout=TIMEOUT_S,
                    metadata=self._target.metadata,
                )
                self.figures.metric_sets += 1
            except grpc.aio.AioRpcError as error:
                # They are cumulative: the next set tells everything that this one would have.
                self.figures.metric_failures += 1
                log.warning("metrics not exported", error=error.details())
            await asyncio.sleep(self._interval_s)

    def collect(self) -> Iterator[Metric]:
        """The exporter's own figures."""
        flows = CounterMetricFamily(
            "ciliate_otlp_flows", "Flows for the collector, by what became of them", labels=["state"]
        )
        for state in ("offered", "sent", "dropped", "rejected", "failed"):
            flows.add_metric([state], getattr(self.figures, state))
        yield flows
        yield CounterMetricFamily(
            "ciliate_otlp_metric_failures", "Sets of metrics that could not be sent", value=self.figures.metric_failures
        )


def _chunks(batch: _Waiting) -> Iterator[Columns]:
    rows = length(batch.columns)
    complete = {name: batch.columns.get(name, zeros(name, rows)) for name in STORED}
    complete["node"] = np.full(rows, batch.node, STORED["node"])
    for start in range(0, rows, BATCH_ROWS):
        yield {name: values[start : start + BATCH_ROWS] for name, values in complete.items()}
