"""The relay's wiring.

    agents --FlowIngest.Push--> FlowIngest --> FlowStore --> Observer --> hubble, ciliate, UI
                                    |              +-- History (Parquet) --+
                                    |
                                NodeTable --> GetNodes, node status messages, ServerStatus

One gRPC server carries both services on every address; the metrics endpoint is another listener.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc.aio
from prometheus_client import CollectorRegistry

import services
from services.common.log import get_logger
from services.common.metrics import MetricsServer
from services.common.pb.ingest.v1 import ingest_pb2_grpc
from services.common.pb.observer import observer_pb2_grpc
from services.common.runner import GrpcServer
from services.common.tls import TlsFiles, peer_identity, server_credentials
from services.common.tracing import tracing
from services.flows.entries import NodeRef
from services.flows.export.keeper import Keeper
from services.flows.follow import NoArchive
from services.flows.history.history import History, open_history
from services.flows.metrics import config as metrics_config
from services.flows.metrics.exporter import FlowMetrics
from services.flows.observer import HEALTH_NAME, SERVICE_NAME, Observer
from services.flows.store import FlowStore
from services.relay import ingest
from services.relay.config import Config
from services.relay.export import target
from services.relay.export.otlp import Exporter
from services.relay.metrics import IngestMetrics, watch_history
from services.relay.nodes import NodeTable

log = get_logger("relay")


@contextlib.asynccontextmanager
async def serving(config: Config, registry: CollectorRegistry) -> AsyncIterator[GrpcServer]:
    """The relay, listening: yields its `GrpcServer`."""
    store = FlowStore(config.capacity)
    history = open_history(config.history_dir, store, max_mb=config.history_max_mb, max_age_s=config.history_max_age)
    nodes = NodeTable(tls=not config.insecure)
    metrics = IngestMetrics(registry, store)
    flow_metrics = FlowMetrics(registry, metrics_config.parse(config.hubble_metrics), config.hubble_metrics_series)
    if history is not None:
        watch_history(registry, history)
    metrics.connected.set_function(lambda: sum(status.connected for status in nodes.statuses()))
    listeners: list[ingest.Listener] = [lambda columns, _: flow_metrics.observe(columns, store.dictionaries)]
    exporter = make_exporter(config, store, registry)
    if exporter is not None:
        listeners.append(exporter.offer)
    keeper = Keeper(config, store, NodeRef(config.node_name), registry)
    servicer = ingest.FlowIngest(store, nodes, metrics, listeners, peer_identity, insecure=config.insecure)
    version = services.__version__
    observer = Observer(
        store, NodeRef(config.node_name), f"ciliate-relay v{version}", version, nodes=nodes, archive=history
    )

    def register(server: grpc.aio.Server) -> None:
        ingest_pb2_grpc.add_FlowIngestServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        observer_pb2_grpc.add_ObserverServicer_to_server(observer, server)  # type: ignore[no-untyped-call]

    credentials = None
    if not config.insecure:
        credentials = server_credentials(TlsFiles(config.tls_ca, config.tls_cert, config.tls_key))
    async with GrpcServer(
        config.listen, credentials, register, [SERVICE_NAME, ingest.SERVICE_NAME], [HEALTH_NAME]
    ) as server:
        log.info("relay ready", addresses=config.listen, ports=server.ports)
        async with (
            background(exporter, keeper),
            writing(history, config.history_flush),
            page(config, store, history, nodes),
        ):
            yield server


@contextlib.asynccontextmanager
async def page(config: Config, store: FlowStore, history: History | None, nodes: NodeTable) -> AsyncIterator[None]:
    """The page is there while the context is open, where one is wanted; its modules are loaded only then."""
    if not config.web_address:
        yield
        return
    from services.relay.web.api import Api
    from services.relay.web.server import WebServer

    tls = None if config.insecure else TlsFiles(config.tls_ca, config.tls_cert, config.tls_key)
    api = Api(
        store, history or NoArchive(), nodes, services.__version__, lambda: history.oldest_ns if history else None
    )
    async with WebServer(config.web_address, tls, api):
        yield


def make_exporter(config: Config, store: FlowStore, registry: CollectorRegistry) -> Exporter | None:
    """The way to a collector, where there is one. Raises `Invalid`."""
    if not config.otlp_endpoint:
        return None
    resource = {
        "service.name": "ciliate-relay",
        "service.version": services.__version__,
        "service.instance.id": config.node_name,
    }
    to = target.parse(config.otlp_endpoint, config.otlp_headers, config.otlp_ca)
    return Exporter(
        to,
        config.otlp_flows,
        config.otlp_interval,
        store.dictionaries,
        registry,
        resource,
        traces=config.otlp_traces,
    )


@contextlib.asynccontextmanager
async def background(exporter: Exporter | None, keeper: Keeper) -> AsyncIterator[None]:
    """Flows go to files, flows and figures to the collector, while the context is open."""
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(keeper.run(), name="export")]
        started += [tasks.create_task(exporter.run(), name="otlp")] if exporter is not None else []
        yield
        for task in started:
            task.cancel()


@contextlib.asynccontextmanager
async def writing(history: History | None, flush_s: float) -> AsyncIterator[None]:
    """Flows go to disk while the context is open; what is left is written at its end."""
    if history is None:
        yield
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(history.run(flush_s), name="flow history")
            yield
            task.cancel()
    finally:
        await history.flush()
        history.close()


async def run(config: Config) -> None:
    """Serve until cancelled."""
    registry = CollectorRegistry()
    serves = asyncio.Event()
    async with (
        tracing(config, "ciliate-relay", registry, config.node_name),
        MetricsServer(config.metrics_address, registry, lambda: "" if serves.is_set() else "not serving yet"),
        serving(config, registry),
    ):
        serves.set()
        await asyncio.get_running_loop().create_future()
