"""The only wiring of the identity service.

                     Allocate, Release, KeepAlive, Register...            Get, List        Watch
                                     |                                        |              ^
                                  server.py  (requests.py, access.py)         |              |
                                     |                                        |           fanout.py
              allocator.py  endpoints.py  leases.py        gc.py              |              ^
                                     |                       |                v              | cursor
                                     | transactions          |             state.py  --> journal.py
                                     v                       v                ^
                                  etcd.py  <------------------                |
                                     |                                        |
                                    etcd  ------------- one watch -------> mirror.py

Changes go to etcd and come back by the watch like everybody else's: memory has one writer, the mirror.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from prometheus_client import CollectorRegistry

from services.common.errors import Invalid
from services.common.log import get_logger
from services.common.metrics import MetricsServer
from services.common.pb.identity.v1.identity_pb2_grpc import add_IdentityServiceServicer_to_server
from services.common.runner import GrpcServer
from services.common.tls import TlsFiles, server_credentials
from services.common.tracing import tracing
from services.identity.allocator import Allocator, Numbers
from services.identity.config import Config
from services.identity.endpoints import EndpointRegistry
from services.identity.etcd import EtcdStore
from services.identity.fanout import Fanout
from services.identity.gc import Collector
from services.identity.journal import Journal
from services.identity.keys import Keys
from services.identity.leases import NodeLeases
from services.identity.metrics import Metrics
from services.identity.mirror import Mirror
from services.identity.server import SERVICE_NAME, IdentityServicer

log = get_logger("app")

HEALTH_ETCD = "ciliate.identity.etcd"
"""Health name that says whether etcd is behind this replica; the service itself also serves without it."""


async def run(config: Config) -> None:
    """Serve until cancelled."""
    async with replica(config) as server:
        log.info("serving", listen=config.listen, ports=server.ports)
        await asyncio.Event().wait()


@asynccontextmanager
async def replica(config: Config) -> AsyncIterator[GrpcServer]:
    """One replica, serving while the context is open; a part that fails takes the context down."""
    if config.identity_min > config.identity_max:
        raise Invalid(f"configuration: identity_min {config.identity_min} is above identity_max {config.identity_max}")
    keys, registry = Keys(config.etcd_root), CollectorRegistry()
    metrics = Metrics(registry)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(tracing(config, "ciliate-identity", registry))
        store = await stack.enter_async_context(_store(config))
        mirror = Mirror(store, keys, Journal(config.journal_changes), config.backlog_revisions)
        fanout = Fanout(mirror, lambda reason: metrics.resets.labels(reason).inc())
        leases = NodeLeases(store, keys, mirror, config.lease_ttl_seconds)
        numbers = Numbers(config.identity_min, config.identity_max, random.Random())

        def collected(number: int) -> None:
            numbers.rest(number)
            metrics.collected.inc()

        collector = Collector(store, keys, mirror, config.grace_seconds, collected)
        allocator = Allocator(store, keys, mirror, leases, numbers)
        endpoints = EndpointRegistry(store, keys, mirror, leases)
        servicer = IdentityServicer(
            mirror, allocator, endpoints, leases, collector, fanout, metrics, config.max_changes
        )
        _bind_gauges(metrics, mirror, fanout)
        await stack.enter_async_context(
            MetricsServer(
                config.metrics_address, registry, lambda: "" if mirror.loaded.is_set() else "etcd is not read yet"
            )
        )
        server = await stack.enter_async_context(_server(config, servicer))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [
            group.create_task(mirror.run(), name="mirror"),
            group.create_task(collector.run(), name="gc"),
            group.create_task(_report_health(mirror, server), name="health"),
        ]
        try:
            yield server
        finally:
            fanout.close()
            for task in tasks:
                task.cancel()


def _store(config: Config) -> EtcdStore:
    files = (config.etcd_ca, config.etcd_cert, config.etcd_key)
    if any(files) and not all(files):
        raise Invalid("configuration: etcd_ca, etcd_cert and etcd_key are needed together, or none for plaintext")
    return EtcdStore(config.etcd_endpoints, TlsFiles(*files) if all(files) else None, config.etcd_timeout_seconds)


def _server(config: Config, servicer: IdentityServicer) -> GrpcServer:
    files = TlsFiles(config.tls_ca, config.tls_cert, config.tls_key)
    return GrpcServer(
        addresses=config.listen,
        credentials=None if config.insecure else server_credentials(files),
        register=lambda server: add_IdentityServiceServicer_to_server(servicer, server),  # type: ignore[no-untyped-call]
        service_names=[SERVICE_NAME],
        health_names=[HEALTH_ETCD],
    )


async def _report_health(mirror: Mirror, server: GrpcServer) -> None:
    """Serving once everything was read, and from then on; whether etcd is there is a name of its own."""
    changed = asyncio.Event()
    mirror.subscribe(changed.set)
    told: tuple[bool, bool] | None = None
    while True:
        now = (mirror.loaded.is_set(), mirror.connected)
        if now != told:
            for name in ("", SERVICE_NAME):
                await server.set_health(name, now[0])
            await server.set_health(HEALTH_ETCD, now[1])
            told = now
        await changed.wait()
        changed.clear()


def _bind_gauges(metrics: Metrics, mirror: Mirror, fanout: Fanout) -> None:
    metrics.gauge("identities", "identities that exist", lambda: len(mirror.state.identities))
    metrics.gauge("unreferenced", "identities waiting for collection", lambda: len(mirror.state.unreferenced))
    metrics.gauge("references", "uses of identities by nodes", lambda: mirror.state.reference_count)
    metrics.gauge("endpoints", "rows of the address table", lambda: len(mirror.state.rows))
    metrics.gauge("revision", "etcd revision that this replica is at", lambda: mirror.journal.head)
    metrics.gauge("journal_changes", "changes kept for watchers", lambda: len(mirror.journal))
    metrics.gauge("watchers", "open watch streams", lambda: fanout.watchers)
    metrics.gauge("etcd_connected", "1 while a watch on etcd stands", lambda: float(mirror.connected))
