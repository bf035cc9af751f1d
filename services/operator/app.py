"""The only wiring of the operator.

    Lease ──▶ Leader ── while it leads ─────────────────────────────────────────────────┐
                                                                                        ▼
    API server ──list, watch──▶ Cache, one per kind ──▶ Chore ──▶ plan (pure) ──▶ Writer ──▶ API server
                                   ▲                      │                         │ asks the leader before each write
                                   └───── what was written is known at once ◀───────┘
    identity service ──watch──▶ IdentityTable ──▶ Tidier ──▶ tidying (pure) ──▶ identity service: forget, collect

Nothing is remembered from one reign to the next: a new leader lists everything anew before it decides anything.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from prometheus_client import CollectorRegistry

from services.client.connection import Target
from services.client.identities import Identities
from services.common.errors import CiliateError
from services.common.kube import locate, resources
from services.common.kube.client import KubeClient
from services.common.log import get_logger
from services.common.metrics import MetricsServer
from services.common.retry import Backoff
from services.common.tls import TlsFiles
from services.operator.chores import Caches, chores, wire
from services.operator.config import Config
from services.operator.definitions import Installer
from services.operator.identities import IdentityTable
from services.operator.leader import WRITE_SECONDS, Leader
from services.operator.metrics import OperatorMetrics
from services.operator.state import State
from services.operator.tidier import Tidier
from services.operator.writes import Writer

log = get_logger("app")


async def run(config: Config) -> None:
    """Be a replica of the operator until cancelled."""
    registry, state = CollectorRegistry(), State()
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(KubeClient(config.kubeconfig, "ciliate-operator"))
        hasty = await stack.enter_async_context(KubeClient(config.kubeconfig, "ciliate-operator", WRITE_SECONDS))
        leader = Leader(hasty, config.namespace, config.lease_name, config.replica, config.timing)
        writer = Writer(hasty, leader)
        OperatorMetrics(registry, state, leader, writer)
        await stack.enter_async_context(MetricsServer(config.metrics_address, registry, state.problem_of(leader)))
        log.info("started", replica=config.replica)

        async def lead() -> None:
            await _lead(config, reader, writer, leader, state)

        await leader.run(lead)


async def _lead(config: Config, reader: KubeClient, writer: Writer, leader: Leader, state: State) -> None:
    """What the leader does, from nothing."""
    state.installer = Installer(reader, writer)
    if config.install_definitions:
        await _install(state.installer)
    caches = Caches(reader)
    table = _identity_table(config, reader)
    found = chores(config, caches, writer, table)
    state.tidier = _tidier(config, caches, table, leader) if table else None
    wire(found)
    state.chores, state.caches = found, caches.by_resource
    try:
        async with asyncio.TaskGroup() as tasks:
            for cache in caches.by_resource.values():
                tasks.create_task(cache.run(), name=f"cache:{cache.resource.kind}")
            if table and state.tidier:
                tasks.create_task(table.run(), name="identities")
                tasks.create_task(state.tidier.run(), name="tidier")
            for chore in found:
                tasks.create_task(chore.run(), name=f"chore:{chore.name}")
    finally:
        state.chores, state.caches, state.tidier = [], {}, None


def _identity_table(config: Config, reader: KubeClient) -> IdentityTable | None:
    if not config.identity_target:
        return None
    files = None if config.insecure else TlsFiles(config.tls_ca, config.tls_cert, config.tls_key)
    find = None
    if config.identity_target.startswith(locate.SCHEME):
        find = locate.Replicas(reader, config.identity_target)
    return IdentityTable(Identities(Target(config.identity_target, files, find)))


def _tidier(config: Config, caches: Caches, table: IdentityTable, leader: Leader) -> Tidier:
    nodes = caches.of(resources.NODES)

    def names() -> set[str] | None:
        known = nodes.synced.is_set() and not nodes.problem
        return {document["metadata"]["name"] for document in nodes.all()} if known else None

    return Tidier(table, names, leader, config.node_grace_seconds, config.leak_seconds)


async def _install(installer: Installer, attempts: int = 5) -> None:
    """Kinds first. What may not be installed does not stop the chores that can do without."""
    backoff = Backoff(initial=0.2, maximum=2.0)
    for _ in range(attempts):
        try:
            await installer.install()
            return
        except CiliateError as error:
            log.warning("definitions", problem=str(error))
            await backoff.wait()
