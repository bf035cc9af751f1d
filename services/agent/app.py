"""The agent's wiring, all of it.

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
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry

import services
from services.agent import node, routing, translation
from services.agent import objects as object_sources
from services.agent.abi.config import ConfigFlags
from services.agent.abi.endpoints import HOST_ENDPOINT
from services.agent.calc.binding import Capabilities
from services.agent.calc.endpoints import Audit
from services.agent.calc.engine import Engine
from services.agent.cni_files import CniFiles
from services.agent.config import Config
from services.agent.datapath.loader_client import Loaded
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.name_tables import Lifetimes
from services.agent.datapath.settings import NodeSettings
from services.agent.datapath.sink import DatapathSink
from services.agent.datapath.sock_sweep import SocketSweeper
from services.agent.devices import NodeDevices
from services.agent.driver import Driver
from services.agent.endpoints.ipam import Ipam
from services.agent.endpoints.links import Links
from services.agent.endpoints.manager import SOURCE as ENDPOINTS
from services.agent.endpoints.manager import EndpointManager, NodeIdentity
from services.agent.endpoints.pods import PodDirectory
from services.agent.endpoints.records import RecordStore
from services.agent.endpoints.references import IdentityReferences
from services.agent.endpoints.registrar import Registrar
from services.agent.endpoints.relabel import Relabeller
from services.agent.events.losses import LostMap
from services.agent.events.pipeline import FlowPipeline, PipelineConfig
from services.agent.host import Advertiser, HostAddresses, rows
from services.agent.http_policy import HttpPolicy
from services.agent.learned import LearnedNames
from services.agent.name_policy import NamePolicy
from services.agent.processes import Processes
from services.agent.refusals import NodeOwner, Owners, Refusals
from services.agent.server.cni import CniServer
from services.agent.server.connections import watch_connections
from services.agent.server.health import describe, describe_status_writer, relay_check
from services.agent.server.health_checks import HealthChecks
from services.agent.server.hubble import SERVICE_NAMES, HubbleApi
from services.agent.server.introspection import SERVICE_NAME, AgentService
from services.agent.server.knowledge import Knowledge
from services.agent.server.metrics import AgentMetrics
from services.agent.server.state import AgentState, component
from services.agent.server.translations import watch_translations
from services.agent.socket_lb import SocketBalancing
from services.agent.sources.base import Mailbox, pump
from services.agent.sources.identities import IdentityClient
from services.agent.sources.kubernetes_status import StatusWriter
from services.agent.trust import establish
from services.common.config import settings
from services.common.log import get_logger
from services.common.metrics import MetricsServer
from services.common.pb.agent.v1 import agent_pb2_grpc
from services.common.runner import GrpcServer
from services.common.tls import TlsFiles, server_credentials
from services.common.tracing import tracing
from services.flows.agent_events import AgentEvents
from services.flows.entries import NodeRef
from services.flows.export.keeper import Keeper
from services.flows.metrics.config import parse as metric_groups
from services.flows.observer import HEALTH_NAME
from services.model.identity import Identity, Reserved
from services.model.label_filter import LabelFilter
from services.model.objects import IpUpserted
from services.policy.verdict import Mode


@dataclass(slots=True)
class Kernel:
    """What is loaded, and the maps by name."""

    loaded: Loaded
    programs: node.Programs
    maps: Mapping[str, PinnedMap]
    settings: NodeSettings
    mtu: int
    overlay: int
    """The overlay device; 0 = none."""
    uplinks: Sequence[node.Uplink]
    """The node's devices towards other nodes and the outside, the first one first."""
    devices: NodeDevices
    sockets: SocketBalancing


@dataclass(slots=True)
class Endpoints:
    """The parts that the pods' interfaces are made of."""

    manager: EndpointManager
    links: Links
    pods: PodDirectory
    references: IdentityReferences
    registrar: Registrar


async def run(config: Config) -> None:
    """Be the agent until cancelled."""
    log = get_logger("app")
    files = None if config.insecure else TlsFiles(config.tls_ca, config.tls_cert, config.tls_key)
    registry = CollectorRegistry()
    async with tracing(config, "ciliate-agent", registry, config.node_name), AsyncExitStack() as stack:
        trust = await establish(config, stack, files)
        identities = trust.identities
        objects, config = await object_sources.build(config, stack)
        kernel = await _kernel(config, stack)
        sources = [identities, *objects.sources]
        engine = Engine(
            config.node_name,
            config.cluster_name,
            sources={source.name for source in sources} | {ENDPOINTS},
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
        http, names = HttpPolicy(kernel.maps, config.http_visibility_ports), NamePolicy(kernel.maps, _lifetimes(config))
        mailbox, sink = Mailbox(), DatapathSink(kernel.maps, http.write, names.write)
        driver = Driver(
            mailbox, engine, sink, HostAddresses(config.node_name, config.addresses, identities.entries.get)
        )
        ends = await _endpoints(config, stack, kernel, identities, driver)
        routes = await routing.build(
            config, stack, _devices(kernel), kernel.settings, ends.links, ends.manager.local, mailbox.put
        )
        knowledge = Knowledge(engine, ends.manager, ends.pods, identities, LearnedNames(kernel.maps), driver.realised)
        hubble = HubbleApi(config, engine, driver, sink)
        pipeline = flow_pipeline(config, files, kernel.maps, knowledge, registry, hubble.events)
        stack.callback(pipeline.close)
        state = AgentState(config.node_name, config.cluster_name, services.__version__)
        cni = _cni_server(config, state, ends)
        describe(state, sources, driver, sink, ends.registrar, cni, [http, names, engine.visibility], registry)
        state.checks += [relay_check(pipeline), kernel.devices.check, *routes.checks(engine)]
        keeper, processes = (
            _exports(config, pipeline, state, registry),
            _processes(config, stack, kernel, ends, pipeline, state),
        )
        sweeper = _watch_sockets(kernel, knowledge, state)
        health = _health_checks(engine, state)
        AgentMetrics(registry, state, knowledge, driver, mailbox, sink, kernel.maps, cni, sources)

        async def enforce() -> None:
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

        status = _status_writer(objects.write_status(engine), state, registry)

        followers = [knowledge.changed, hubble.applied, sweeper.changed, health.changed, lambda: routes.applied(engine)]
        driver.observers = (
            ends.manager.observe,
            routes.observe,
            hubble.observe,
            Advertiser(config.node_name, config.addresses, ends.registrar).observe,
        )
        driver.on_applied, driver.on_sync = _each(followers + ([status.changed] if status else [])), enforce
        await listen(config, stack, files, registry, state, knowledge, kernel.maps, pipeline, hubble)
        await _recall(config, mailbox, ends)
        log.info("started", node=config.node_name, version=services.__version__, reused_maps=len(kernel.loaded.reused))
        jobs = {f"source:{source.name}": pump(source, mailbox) for source in sources} | {
            "driver": driver.run(),
            "driver:retry": driver.retry(),
            "identities:keepalive": identities.keep_alive(lambda: _lapse(ends)),
            "cni": cni.run(),
            "flows": pipeline.run(),
            "flows:export": keeper.run(),
            "sockets": sweeper.run(),
            "sockets:refused": _watch_refusals(config, stack, kernel, ends, pipeline).run(),
            "services:health": health.run(),
            "conntrack": watch_connections(
                kernel.maps, config.connections_per_pod, knowledge, pipeline.add, state, registry
            ).run(),
            "translations": watch_translations(kernel.maps, knowledge, state, registry).run(),
        }
        jobs |= trust.jobs() | objects.jobs(config, ends.manager.ipam) | routes.jobs() | _endpoint_jobs(ends)
        await _forever(jobs | ({"policy:status": status.run()} if status else {}))


def _status_writer(writer: StatusWriter | None, state: AgentState, registry: CollectorRegistry) -> StatusWriter | None:
    if writer is not None:
        describe_status_writer(state, writer, registry)
    return writer


def _exports(config: Config, pipeline: FlowPipeline, state: AgentState, registry: CollectorRegistry) -> Keeper:
    keeper = Keeper(config, pipeline.store, pipeline.config.node, registry)
    state.checks.append(lambda: component("export", keeper.errors))
    return keeper


def _health_checks(engine: Engine, state: AgentState) -> HealthChecks:
    health = HealthChecks(engine.load_balancing.health_checks)
    state.checks.append(lambda: component("service health checks", health.errors))
    return health


def _watch_sockets(kernel: Kernel, knowledge: Knowledge, state: AgentState) -> SocketSweeper:
    sweeper = SocketSweeper(kernel.maps["sockets"], knowledge.live_backends, knowledge.namespaces)
    state.checks.append(kernel.sockets.check)
    state.counters.append(lambda: {"sockets:closed": sweeper.closed_total})
    return sweeper


def _cni_server(config: Config, state: AgentState, ends: Endpoints) -> CniServer:
    """The socket; plugin and configuration are in the runtime's folders while it is open and pods are enforced."""
    path = config.place(config.cni_socket, "cni.sock")
    files = CniFiles(config.cni_bin_dir, config.cni_conf_dir, path, config.cni_chain)
    state.checks.append(files.check)
    state.when_ready.append(files.install)

    def unready() -> str:
        return ends.manager.ipam.exhausted() if state.ready else "the agent is starting"

    return CniServer(Path(path), ends.manager, unready, lambda: ends.links.mtu)


def _devices(kernel: Kernel) -> routing.Devices:
    names = tuple(device.name for device in kernel.uplinks)
    return routing.Devices(kernel.uplinks[0].ifindex, kernel.overlay, names, kernel.devices.follow)


def _processes(
    config: Config, stack: AsyncExitStack, kernel: Kernel, ends: Endpoints, pipeline: FlowPipeline, state: AgentState
) -> Processes:
    processes = Processes(kernel.loaded, config.cgroup_root, wanted=config.flow_processes)
    owners = Owners(NodeOwner(config.addresses), ends.manager.local, time.monotonic)
    processes.open(pipeline.store.dictionaries, owners)
    stack.callback(processes.close)
    if processes.table is not None:
        pipeline.name_processes(processes.table, processes.take)
    state.checks.append(processes.check)
    return processes


def _watch_refusals(
    config: Config, stack: AsyncExitStack, kernel: Kernel, ends: Endpoints, pipeline: FlowPipeline
) -> Refusals:
    owners = Owners(NodeOwner(config.addresses), ends.manager.local, time.monotonic)
    refusals = Refusals(kernel.maps["sock_events"].fd, owners, pipeline.add)
    stack.callback(refusals.close)
    return refusals


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


def _endpoint_jobs(ends: Endpoints) -> dict[str, Coroutine[Any, Any, None]]:
    changed: asyncio.Queue[Identity] = asyncio.Queue()
    relabeller = Relabeller(ends.manager, ends.pods, ends.references)
    return {
        "endpoints:labels": relabeller.run(),
        "endpoints:renumber": relabeller.renumber(changed),
        "endpoints:references": ends.references.run(changed),
        "endpoints:registrar": ends.registrar.run(),
    }


async def _recall(config: Config, mailbox: Mailbox, ends: Endpoints) -> None:
    """What this node knows by itself: its own addresses, and the endpoints of an earlier run."""
    for entry in rows(config.node_name, config.addresses, Reserved.HOST):
        mailbox.put(IpUpserted(entry))
    for update in await ends.manager.restore():
        mailbox.put(update)


def _lapse(ends: Endpoints) -> None:
    ends.references.lapse()
    ends.registrar.lapse()


async def _kernel(config: Config, stack: AsyncExitStack) -> Kernel:
    uplinks = await node.find_devices(config)
    node.enable_forwarding()
    loaded = await node.load_programs(config)
    maps = {name: PinnedMap(loaded.map(name)) for name in node.MAPS}
    for opened in maps.values():
        stack.callback(opened.close)
    mtu, indexes = config.path_mtu(uplinks[0].mtu), {device.name: device.ifindex for device in uplinks}
    overlay = await node.ensure_overlay(config, mtu)
    await translation.configure(config, list(indexes.values()), overlay, maps)
    sockets = SocketBalancing(config.socket_lb, config.cgroup_root, loaded)
    flags = await node.pacing(config, uplinks) | (ConfigFlags.SOCKET_LB if sockets.enabled else 0)
    settings = NodeSettings(maps["config"], node.datapath_settings(config, overlay, mtu, maps, flags))
    programs, pod_mtu = node.Programs(loaded, config.xdp), config.pod_mtu(uplinks[0].mtu)
    devices = NodeDevices(indexes, config.addresses, overlay, maps["netdevs"], programs)
    return Kernel(loaded, programs, maps, settings, pod_mtu, overlay, uplinks, devices, sockets)


async def _endpoints(
    config: Config, stack: AsyncExitStack, kernel: Kernel, identities: IdentityClient, driver: Driver
) -> Endpoints:
    links = await stack.enter_async_context(Links(config.node_name, kernel.mtu))
    pods = PodDirectory(config.cluster_name, LabelFilter(config.identity_label_patterns))
    references = IdentityReferences(identities)
    registrar = Registrar(identities, config.node_name)
    manager = EndpointManager(
        NodeIdentity(config.node_name, config.addresses[0], HOST_ENDPOINT),
        Ipam(config.pod_ranges),
        RecordStore(Path(config.place("", "endpoints"))),
        links,
        kernel.programs,
        pods,
        references,
        registrar,
        driver.publish,
    )
    return Endpoints(manager, links, pods, references, registrar)


def flow_pipeline(
    config: Config,
    files: TlsFiles | None,
    maps: Mapping[str, PinnedMap],
    knowledge: Knowledge,
    registry: CollectorRegistry,
    events: AgentEvents,
) -> FlowPipeline:
    return FlowPipeline(
        PipelineConfig(
            node=NodeRef(config.node_name, config.cluster_name),
            version=services.__version__,
            capacity=config.flow_capacity,
            buffer_bytes=config.flow_buffer_bytes,
            relay_target=config.relay_target,
            tls=files,
            aggregation=config.flow_aggregation,
            metrics=metric_groups(config.hubble_metrics),
            metrics_series=config.hubble_metrics_series,
            observer_address=config.hubble_address,
        ),
        knowledge,
        maps["events"].fd,
        maps["http_events"].fd,
        maps["name_events"].fd,
        LostMap(maps["lost"]),
        registry,
        events,
    )


async def listen(
    config: Config,
    stack: AsyncExitStack,
    files: TlsFiles | None,
    registry: CollectorRegistry,
    state: AgentState,
    knowledge: Knowledge,
    maps: Mapping[str, PinnedMap],
    pipeline: FlowPipeline,
    hubble: HubbleApi,
) -> None:
    """The sockets: introspection with certificates; flows plain on one that only root may open, as `hubble` expects."""
    service = AgentService(state, knowledge, maps, [str(network) for network in config.pod_ranges], settings(config))
    credentials = server_credentials(files) if files else None

    def introspection(server: grpc.aio.Server) -> None:
        agent_pb2_grpc.add_AgentServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]

    def observer(server: grpc.aio.Server) -> None:
        hubble.register(server, pipeline.observer)

    agent_socket = f"unix://{config.place(config.agent_socket, 'agent.sock')}"
    hubble_socket = f"unix://{config.place(config.hubble_socket, 'hubble.sock')}"
    await stack.enter_async_context(
        MetricsServer(config.metrics_address, registry, lambda: "" if state.ready else "maps are not whole yet")
    )
    await stack.enter_async_context(GrpcServer([agent_socket], credentials, introspection, [SERVICE_NAME]))
    await stack.enter_async_context(GrpcServer([hubble_socket], None, observer, SERVICE_NAMES, [HEALTH_NAME]))
    if config.hubble_address:
        await stack.enter_async_context(
            GrpcServer([config.hubble_address], credentials, observer, SERVICE_NAMES, [HEALTH_NAME])
        )
