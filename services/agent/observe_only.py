"""The wiring of observe-only mode: flows of pods that another network attaches. Nothing on the node is changed.

    folder | kubernetes ──┐
    identity service ─────┼─▶ Mailbox ─▶ Driver ─▶ Engine (enforces nothing) ─▶ DatapathSink ─▶ pinned maps
    pods of this node ────┘                 │                                                        ▲
                                            └─▶ WatchedEndpoints (identities, address rows)          │
                          lanes ─▶ FlowPipeline ─▶ relay, hubble.sock        watch.c in front of others' programs

No forwarding, no overlay, no routes, no qdisc, no CNI socket, no socket hooks. What hooks the interfaces belongs to
this process and ends with it; maps and programs stay pinned for the next start, until `ciliate-agent cleanup`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry

import services
from services.agent import node
from services.agent import objects as object_sources
from services.agent.abi.endpoints import HOST_ENDPOINT
from services.agent.calc.endpoints import Audit
from services.agent.calc.engine import Engine
from services.agent.config import Config
from services.agent.datapath.loader_client import Loaded
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.name_tables import Lifetimes
from services.agent.datapath.settings import NodeSettings, Settings
from services.agent.datapath.sink import DatapathSink
from services.agent.datapath.watch import WatchHooks
from services.agent.driver import Driver
from services.agent.endpoints.ipam import Ipam
from services.agent.endpoints.leaks import LeakCheck
from services.agent.endpoints.links import Links
from services.agent.endpoints.manager import SOURCE as ENDPOINTS
from services.agent.endpoints.pods import PodDirectory
from services.agent.endpoints.references import IdentityReferences
from services.agent.endpoints.registrar import Registrar
from services.agent.endpoints.relabel import Relabeller
from services.agent.endpoints.rows import NodeIdentity
from services.agent.endpoints.watched import NoRecords, WatchedEndpoints
from services.agent.events.aggregation import interval_s
from services.agent.host import HostAddresses
from services.agent.http_policy import HttpPolicy
from services.agent.learned import LearnedNames
from services.agent.listening import flow_pipeline, listen
from services.agent.name_policy import NamePolicy
from services.agent.server.cni import CniServer
from services.agent.server.connections import watch_connections
from services.agent.server.health import describe, relay_check
from services.agent.server.hubble import HubbleApi
from services.agent.server.knowledge import Knowledge
from services.agent.server.metrics import AgentMetrics
from services.agent.server.state import AgentState, component
from services.agent.sources.base import Mailbox, pump
from services.agent.trust import establish
from services.common.log import get_logger
from services.common.tls import TlsFiles
from services.model.identity import Identity
from services.model.label_filter import LabelFilter
from services.policy.verdict import Mode

FOLLOW_SECONDS = 0.5
"""Between looks at the interfaces."""


async def run(config: Config) -> None:
    """Watch until cancelled."""
    config = config.model_copy(update={"ipam": "static"})  # addresses are somebody else's affair
    files = None if config.insecure else TlsFiles(config.tls_ca, config.tls_cert, config.tls_key)
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        trust = await establish(config, stack, files)
        identities = trust.identities
        objects, config = await object_sources.build(config, stack)
        loaded = await node.load_programs(config)
        maps = _maps(loaded, stack)
        _configure(config, maps)
        sources = [identities, *objects.sources]
        engine = _engine(config, maps, {source.name for source in sources} | {ENDPOINTS})
        http = HttpPolicy(maps, config.http_visibility_ports, traces=config.http_trace_context)
        names = NamePolicy(maps, Lifetimes(config.fqdn_min_ttl, config.fqdn_grace))
        mailbox, sink = Mailbox(), DatapathSink(maps, http.write, names.write)
        driver = Driver(
            mailbox, engine, sink, HostAddresses(config.node_name, config.addresses, identities.entries.get)
        )
        pods = PodDirectory(config.cluster_name, LabelFilter(config.identity_label_patterns))
        references, registrar = IdentityReferences(identities), Registrar(identities, config.node_name)
        links = await stack.enter_async_context(Links(config.node_name, 1500))
        where = NodeIdentity(config.node_name, None, HOST_ENDPOINT)
        parts = (Ipam(()), NoRecords(Path()), links, None, pods, references, registrar, driver.publish)
        watched = WatchedEndpoints(where, *parts)
        knowledge = Knowledge(engine, watched, pods, identities, LearnedNames(maps), driver.realised)
        hubble = HubbleApi(config, engine, driver, sink)
        pipeline = flow_pipeline(config, files, maps, knowledge, registry, hubble.events)
        stack.callback(pipeline.close)
        hooks = WatchHooks(Path(loaded.root) / "progs", config.observe_interfaces)
        stack.callback(hooks.close)
        state = AgentState(config.node_name, config.cluster_name, services.__version__)
        cni = CniServer(Path(config.place(config.cni_socket, "cni.sock")), watched)  # never opened: pods are not ours
        describe(state, sources, driver, sink, registrar, cni, [http, names], registry)
        state.checks += [relay_check(pipeline), lambda: component("interfaces", hooks.problems, good=_told(hooks))]
        AgentMetrics(registry, state, knowledge, driver, mailbox, sink, maps, cni, sources)

        async def synced() -> None:
            watched.complete()

        def lapse() -> None:
            references.lapse()
            registrar.lapse()

        driver.observers = (watched.observe, hubble.observe)
        driver.on_applied, driver.on_sync = _each(knowledge.changed, hubble.applied), synced
        await listen(config, stack, files, registry, state, knowledge, maps, pipeline, hubble)
        for update in await watched.restore():
            mailbox.put(update)
        renumbered: asyncio.Queue[Identity] = asyncio.Queue()
        relabeller = Relabeller(watched, pods, references)
        connections = watch_connections(maps, config.connections_per_pod, knowledge, pipeline.add, state, registry)
        async with asyncio.TaskGroup() as tasks:
            for job in (
                *(pump(source, mailbox) for source in sources),
                *(driver.run(), driver.retry(), identities.keep_alive(lapse), pipeline.run(), connections.run()),
                *(watched.run(), relabeller.run(), relabeller.renumber(renumbered)),
                *(references.run(renumbered), registrar.run(), _follow(watched, hooks, state)),
                LeakCheck(references, identities, registrar, config.reference_check_seconds).run(watched.caught_up),
                *trust.jobs().values(),
            ):
                tasks.create_task(job)


def _maps(loaded: Loaded, stack: AsyncExitStack) -> dict[str, PinnedMap]:
    maps = {name: PinnedMap(loaded.map(name)) for name in node.MAPS}
    for opened in maps.values():
        stack.callback(opened.close)
    return maps


def _configure(config: Config, maps: dict[str, PinnedMap]) -> None:
    """What the programs have to know: how often to tell of live connections. No flag: they do nothing else."""
    interval = interval_s(config.flow_aggregation, config.flow_interval)
    NodeSettings(maps["config"], Settings(update_interval_s=interval, ct_queue_places=maps["ct_queue"].max_entries))


def _engine(config: Config, maps: dict[str, PinnedMap], sources: set[str]) -> Engine:
    """Policies are read and never enforced; with policy_audit_mode flows say what they would refuse."""
    audit = Audit(config.policy_audit_mode, frozenset(config.policy_audit_namespaces))
    return Engine(
        config.node_name,
        config.cluster_name,
        sources=sources,
        revision=node.last_revision(maps["endpoints"]),
        mode=Mode.DEFAULT if config.policy_audit_mode else Mode.NEVER,
        capacity=config.policy_max,
        addresses=config.addresses,
        lb=config.load_balancing,
        audit=audit,
    )


def _each(*calls: Callable[[], None]) -> Callable[[], None]:
    def call_all() -> None:
        for call in calls:
            call()

    return call_all


async def _follow(watched: WatchedEndpoints, hooks: WatchHooks, state: AgentState) -> None:
    """Ready once pods have names and their interfaces are watched; then the interfaces as they come and go."""
    await watched.caught_up.wait()
    hooks.follow()
    state.become_ready()
    get_logger("observe-only").info("ready", interfaces=hooks.watched)
    told = hooks.watched
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        hooks.follow()
        if hooks.watched != told:
            told = hooks.watched
            get_logger("observe-only").info("interfaces changed", interfaces=told)


def _told(hooks: WatchHooks) -> str:
    return f"{len(hooks.watched)} watched, none policed"
