"""Sends flows, spans and figures to an OpenTelemetry collector (OTLP 1.x over gRPC), and never makes anybody wait.

Rows that are wanted are kept by number in bounded queues and rendered when they are sent. A collector that is away or
busy is tried again with growing pauses, for as long as it takes. What the bound drops or the collector refuses counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial

import grpc.aio
import numpy as np
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics, ScopeMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.log import get_logger
from services.flows.columns import Columns, length
from services.flows.dictionary import Dictionaries
from services.flows.render import Renderer
from services.relay.export import logs, metrics, spans
from services.relay.export.lane import Figures, Lane, Send
from services.relay.export.target import Target
from services.relay.export.wanted import Wanted

log = get_logger("otlp")

TIMEOUT_S = 10.0
SCOPE = "ciliate.flows"
STATES = ("offered", "sent", "dropped", "rejected", "failed")


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
        traces: float = 0,
    ) -> None:
        """`interval_s`: between metric exports. `resource`: what sends, by semantic convention. `traces`: the share of
        HTTP requests that are sent as spans."""
        self._target, self._interval_s = target, interval_s
        self._dictionaries, self._registry, self._now = dictionaries, registry, now
        self._resource = Resource(attributes=logs.attributes(resource.items()))
        self._scope = InstrumentationScope(name=SCOPE, version=resource.get("service.version", ""))
        self._flows = Lane("flows", dictionaries, wanted.rows)
        self._spans = Lane("spans", dictionaries, partial(spans.wanted, share=traces))
        self._started = now()
        self.metric_sets, self.metric_failures = 0, 0
        registry.register(self)

    @property
    def figures(self) -> Figures:
        """What became of flows."""
        return self._flows.figures

    @property
    def span_figures(self) -> Figures:
        """What became of spans."""
        return self._spans.figures

    def offer(self, columns: Columns, node: int) -> None:
        """Queue what is wanted of a batch."""
        self._flows.offer(columns, node)
        self._spans.offer(columns, node)

    async def run(self) -> None:
        """Send until cancelled."""
        async with self._target.channel() as channel, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._flows.run(self._log_sender(channel)), name="otlp: flows")
            tasks.create_task(self._spans.run(self._span_sender(channel)), name="otlp: spans")
            tasks.create_task(self._send_metrics(channel), name="otlp: metrics")

    def _log_sender(self, channel: grpc.aio.Channel) -> Send:
        stub, renderer = LogsServiceStub(channel), Renderer(self._dictionaries, "")  # type: ignore[no-untyped-call]

        async def send(columns: Columns) -> int:
            now, facets = self._now(), np.zeros(length(columns), np.uint8)
            records = [logs.record(found.flow, now) for found in renderer.responses(columns, facets)]
            whole = ResourceLogs(
                resource=self._resource, scope_logs=[ScopeLogs(scope=self._scope, log_records=records)]
            )
            request = ExportLogsServiceRequest(resource_logs=[whole])
            answer = await stub.Export(request, timeout=TIMEOUT_S, metadata=self._target.metadata)
            return int(answer.partial_success.rejected_log_records)

        return send

    def _span_sender(self, channel: grpc.aio.Channel) -> Send:
        stub, renderer = TraceServiceStub(channel), Renderer(self._dictionaries, "")  # type: ignore[no-untyped-call]

        async def send(columns: Columns) -> int:
            facets = np.zeros(length(columns), np.uint8)
            flows = [found.flow for found in renderer.responses(columns, facets)]
            request = ExportTraceServiceRequest(resource_spans=spans.gather(flows, columns, self._scope))
            answer = await stub.Export(request, timeout=TIMEOUT_S, metadata=self._target.metadata)
            return int(answer.partial_success.rejected_spans)

        return send

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
                self.metric_sets += 1
            except grpc.aio.AioRpcError as error:
                # They are cumulative: the next set tells everything that this one would have.
                self.metric_failures += 1
                log.warning("metrics not exported", error=error.details())
            await asyncio.sleep(self._interval_s)

    def collect(self) -> Iterator[Metric]:
        """The exporter's own figures."""
        for what, figures in (("flows", self.figures), ("spans", self.span_figures)):
            text = f"{what.capitalize()} for the collector, by what became of them"
            found = CounterMetricFamily(f"ciliate_otlp_{what}", text, labels=["state"])
            for state in STATES:
                found.add_metric([state], getattr(figures, state))
            yield found
        yield CounterMetricFamily(
            "ciliate_otlp_metric_failures", "Sets of metrics that could not be sent", value=self.metric_failures
        )
