"""The agent's wiring. `kernel`, `pods`, `listening` and `watching` beside it put the larger parts together.

    folder | kubernetes ──┐
    identity service ─────┼──▶ Mailbox ──▶ Driver ──▶ Engine (pure) ──▶ DatapathSink ──▶ pinned maps
    endpoints (CNI, disk) ┘                  │                                                ▲
        ▲      │                             ├─▶ EndpointManager (labels, address rows)       │ loader child
        │      └─▶ veth, tc programs         └─▶ Routing (routes, MTU)                        │ (compile, verify, pin)
    cni.sock                                                                                  │
                          rings, conntrack ──▶ FlowPipeline ──▶ relay, hubble.sock       tc programs ◀── packets
    agent.sock ──▶ AgentService ──▶ Knowledge (engine + endpoints + identities)

Start: load programs (pinned maps are reused) ─ restore endpoints from disk ─ every source complete ─ maps reconciled ─
programs attached ─ ready. Whenever the agent dies, the kernel goes on with what it has.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from prometheus_client import CollectorRegistry

import services
from services.agent import node, routing
from services.agent import objects as object_sources
from services.agent.calc.binding import Capabilities
from services.agent.calc.endpoints import Audit
from services.agent.calc.engine import Engine
from services.agent.config import Config
from services.agent.datapath.name_tables import Lifetimes
from services.agent.datapath.sink import DatapathSink
from services.agent.driver import Driver
from services.agent.endpoints.manager import SOURCE as ENDPOINTS
from services.agent.host import Advertiser, HostAddresses
from services.agent.http_policy import HttpPolicy
from services.agent.kernel import Kernel, devices_of, open_kernel
from services.agent.learned import LearnedNames
from services.agent.listening import cni_server, exports, flow_pipeline, listen
from services.agent.name_policy import NamePolicy
from services.agent.pods import Endpoints, build_endpoints, endpoint_jobs, lapse, recall
from services.agent.processes import Processes
from services.agent.server.connections import watch_connections
from services.agent.server.health import describe, relay_check
from services.agent.server.hubble import HubbleApi
from services.agent.server.knowledge import Knowledge
from services.agent.server.metrics import AgentMetrics
from services.agent.server.state import AgentState
from services.agent.server.translations import watch_translations
from services.agent.sources.base import Mailbox, pump
from services.agent.trust import establish
from services.agent.watching import described, health_checks, watch_processes, watch_refusals, watch_sockets
from services.common.log import get_logger
from services.common.tls import TlsFiles
from services.common.tracing import tracing
from services.policy.verdict import Mode

log = get_logger("app")


async def run(config: Config) -> None:
    """Be the agent until cancelled."""
    files = None if config.insecure else TlsFiles(config.tls_ca, config.tls_cert, config.tls_key)
    registry = CollectorRegistry()
    async with tracing(config, "ciliate-agent", registry, config.node_name), AsyncExitStack() as stack:
        trust = await establish(config, stack, files)
        identities = trust.identities
        objects, config = await object_sources.build(config, stack)
        kernel = await open_kernel(config, stack)
        sources = [identities, *objects.sources]
        engine = _engine(config, kernel, {source.name for source in sources} | {ENDPOINTS})
        http = HttpPolicy(kernel.maps, config.http_visibility_ports, traces=config.http_trace_context)
        names = NamePolicy(kernel.maps, _lifetimes(config))
        mailbox, sink = Mailbox(), DatapathSink(kernel.maps, http.write, names.write)
        driver = Driver(
            mailbox, engine, sink, HostAddresses(config.node_name, config.addresses, identities.entries.get)
        )
        ends = await build_endpoints(config, stack, kernel, identities, driver)
        routes = await routing.build(
            config, stack, devices_of(kernel), kernel.settings, ends.links, ends.manager.local, mailbox.put
        )
        knowledge = Knowledge(engine, ends.manager, ends.pods, identities, LearnedNames(kernel.maps), driver.realised)
        hubble = HubbleApi(config, engine, driver, sink)
        pipeline = flow_pipeline(config, files, kernel.maps, knowledge, registry, hubble.events)
        stack.callback(pipeline.close)
        state = AgentState(config.node_name, config.cluster_name, services.__version__)
        cni = cni_server(config, state, ends)
        describe(state, sources, driver, sink, ends.registrar, cni, [http, names, engine.visibility], registry)
        state.checks += [relay_check(pipeline), kernel.devices.check, *routes.checks(engine)]
        keeper = exports(config, pipeline, state, registry)
        processes = watch_processes(config, stack, kernel, ends, pipeline, state)
        sweeper = watch_sockets(kernel, knowledge, state)
        health = health_checks(engine, state)
        AgentMetrics(registry, state, knowledge, driver, mailbox, sink, kernel.maps, cni, sources)

        status = described(objects.write_status(engine), state, registry)

        followers = [knowledge.changed, hubble.applied, sweeper.changed, health.changed, lambda: routes.applied(engine)]
        driver.observers = (
            ends.manager.observe,
            routes.observe,
            hubble.observe,
            Advertiser(config.node_name, config.addresses, ends.registrar).observe,
        )
        driver.on_applied = _each(followers + ([status.changed] if status else []))
        driver.on_sync = functools.partial(_enforce, kernel, ends, processes, routes, state)
        await listen(config, stack, files, registry, state, knowledge, kernel.maps, pipeline, hubble)
        await recall(config, mailbox, ends)
        log.info("started", node=config.node_name, version=services.__version__, reused_maps=len(kernel.loaded.reused))
        jobs = {f"source:{source.name}": pump(source, mailbox) for source in sources} | {
            "driver": driver.run(),
            "driver:retry": driver.retry(),
            "identities:keepalive": identities.keep_alive(lambda: lapse(ends)),
            "cni": cni.run(),
            "flows": pipeline.run(),
            "flows:export": keeper.run(),
            "hooks": kernel.programs.advance.run(),
            "sockets": sweeper.run(),
            "sockets:refused": watch_refusals(config, stack, kernel, ends, pipeline).run(),
            "services:health": health.run(),
            "conntrack": watch_connections(
                kernel.maps, config.connections_per_pod, knowledge, pipeline.add, state, registry
            ).run(),
            "translations": watch_translations(kernel.maps, knowledge, state, registry).run(),
        }
        jobs |= trust.jobs() | objects.jobs(config, ends.manager.ipam) | routes.jobs() | endpoint_jobs(ends)
        await _forever(jobs | ({"policy:status": status.run()} if status else {}))


def _engine(config: Config, kernel: Kernel, sources: set[str]) -> Engine:
    return Engine(
        config.node_name,
        config.cluster_name,
        sources=sources,
        revision=node.last_revision(kernel.maps["endpoints"]),
        mode=Mode(config.policy_enforcement),
        capacity=config.policy_max,
        addresses=config.addresses,
        lb=config.load_balancing,
        audit=Audit(config.policy_audit_mode, frozenset(config.policy_audit_namespaces)),
        capabilities=Capabilities(host_policies=config.host_firewall),
        native_routing=config.native_routing,
        uplink=kernel.uplinks[0].ifindex,
    )


async def _enforce(
    kernel: Kernel, ends: Endpoints, processes: Processes, routes: routing.Routing, state: AgentState
) -> None:
    """The maps say what they should: now packets may meet the programs that read them."""
    if kernel.overlay:
        await kernel.programs.attach_overlay(kernel.overlay)
    await kernel.devices.enforce()
    await ends.manager.attach_all()
    kernel.sockets.enforce()
    processes.enforce()
    kernel.programs.drop_earlier()
    await routes.table.sweep()
    state.become_ready()
    log.info("ready", seconds=round(state.ready_after, 2), endpoints=len(ends.manager.endpoints))


def _lifetimes(config: Config) -> Lifetimes:
    return Lifetimes(config.fqdn_min_ttl, config.fqdn_grace)


def _each(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def call_all() -> None:
        for call in calls:
            call()

    return call_all


async def _forever(jobs: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Run all of them; if one fails, all end, and the process with them."""
    async with asyncio.TaskGroup() as tasks:
        for name, job in jobs.items():
            tasks.create_task(job, name=name)
