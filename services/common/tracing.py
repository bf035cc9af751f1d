"""Spans of a process's own gRPC calls, sent to an OpenTelemetry collector by OpenTelemetry's own SDK.

A call of another of our processes joins the trace of the call that it serves: servers read `traceparent` from the
metadata, channels write it. Spans wait in a bounded queue of the SDK's, which drops what does not fit; what became of
them is counted (`ciliate_traces_spans_total`): offered = sent + failed + dropped, apart from those still waiting.

As in OpenTelemetry itself, which provider is in force is a matter of the process: `tracing` sets and unsets it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from services.common.config import BaseConfig
from services.common.errors import Invalid

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from prometheus_client import CollectorRegistry, Metric

UNTRACED = ("grpc.health.", "grpc.reflection.")
"""Probes and tools: their calls are no work."""
QUEUE_SPANS, BATCH_SPANS, DELAY_MS, TIMEOUT_S = 4096, 512, 2000, 10
END_SECONDS = 2.0
"""How long the end of a process may wait for its last spans."""

_active: list[TracerProvider] = []


@contextlib.asynccontextmanager
async def tracing(
    config: BaseConfig, process: str, registry: CollectorRegistry, instance: str = ""
) -> AsyncIterator[None]:
    """Calls are traced while the context is open, where `trace_endpoint` says where to. Raises `Invalid`."""
    if not config.trace_endpoint:
        yield
        return
    provider, exporter = _provider(config, process, registry, instance)
    _active.append(provider)
    try:
        yield
    finally:
        _active.remove(provider)
        # Its last spans are sent from a thread of its own: the loop must turn meanwhile.
        ending = asyncio.create_task(asyncio.to_thread(provider.shutdown), name="last spans")
        _, late = await asyncio.wait({ending}, timeout=END_SECONDS)
        if late:
            await asyncio.to_thread(exporter.shutdown, 0)  # ends its attempts; what is left has failed
            await ending


def server_interceptors() -> list[Any]:
    """What a gRPC server needs, outermost first; none where nothing is traced."""
    if not _active:
        return []
    from opentelemetry.instrumentation.grpc import aio_server_interceptor

    return [aio_server_interceptor(tracer_provider=_active[-1], filter_=_traced)]  # type: ignore[no-untyped-call]


def client_interceptors() -> Sequence[Any]:
    """What a gRPC channel needs."""
    if not _active:
        return ()
    from opentelemetry.instrumentation.grpc import aio_client_interceptors

    found = aio_client_interceptors(tracer_provider=_active[-1], filter_=_traced)  # type: ignore[no-untyped-call]
    return list(found)


def _traced(details: Any) -> bool:
    method = details.method if isinstance(details.method, str) else details.method.decode()
    return not method.lstrip("/").startswith(UNTRACED)


def _provider(config: BaseConfig, process: str, registry: CollectorRegistry, instance: str) -> Any:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    import services

    names = {"service.name": process, "service.version": services.__version__}
    provider = TracerProvider(resource=Resource.create(names | ({"service.instance.id": instance} if instance else {})))
    plaintext, credentials = _security(config)
    exporter = OTLPSpanExporter(config.trace_endpoint, plaintext, credentials, timeout=TIMEOUT_S)
    count = _Count(registry)
    # The first processor sees what is offered; the second one may drop it.
    provider.add_span_processor(count)  # type: ignore[arg-type]
    provider.add_span_processor(
        BatchSpanProcessor(count.counting(exporter), QUEUE_SPANS, DELAY_MS, max_export_batch_size=BATCH_SPANS)
    )
    return provider, exporter


def _security(config: BaseConfig) -> tuple[bool, grpc.ChannelCredentials | None]:
    scheme, found, address = config.trace_endpoint.partition("://")
    if not found or scheme not in ("http", "https") or not address.rpartition(":")[2].rstrip("/").isdigit():
        raise Invalid(
            f"trace_endpoint: {config.trace_endpoint!r} is not of the form http://host:port or https://host:port"
        )
    if scheme == "http":
        return True, None
    try:
        roots = Path(config.trace_ca).read_bytes() if config.trace_ca else None
    except OSError as error:
        raise Invalid(f"trace_ca: cannot read {config.trace_ca}: {error.strerror}") from error
    return False, grpc.ssl_channel_credentials(roots)


class _Count:
    """A span processor that counts, and a wrapper of the exporter that does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.offered = self.sent = self.failed = 0
        registry.register(self)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Nothing yet."""

    def _on_ending(self, span: Any) -> None:
        """Nothing yet."""

    def on_end(self, span: Any) -> None:
        """A span is offered."""
        self.offered += 1

    def shutdown(self) -> None:
        """Nothing to end."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing waits here."""
        return True

    def counting(self, exporter: Any) -> Any:
        """The exporter, counted."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        export = exporter.export

        def counted(spans: Sequence[Any]) -> Any:
            result = export(spans)
            if result is SpanExportResult.SUCCESS:
                self.sent += len(spans)
            else:
                self.failed += len(spans)
            return result

        exporter.export = counted
        return exporter

    def collect(self) -> Iterator[Metric]:
        """What became of spans; the rest waits or was dropped."""
        from prometheus_client.core import CounterMetricFamily

        found = CounterMetricFamily("ciliate_traces_spans", "Spans of this process's calls", labels=["state"])
        for state in ("offered", "sent", "failed"):
            found.add_metric([state], getattr(self, state))
        yield found
