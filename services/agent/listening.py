"""How the agent is reached, and where its flows go."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
from prometheus_client import CollectorRegistry

import services
from services.agent.cni_files import CniFiles
from services.agent.config import Config
from services.agent.datapath.maps import PinnedMap
from services.agent.events.losses import LostMap
from services.agent.events.pipeline import FlowPipeline, PipelineConfig
from services.agent.pods import Endpoints
from services.agent.server.cni import CniServer
from services.agent.server.hubble import SERVICE_NAMES, HubbleApi
from services.agent.server.introspection import SERVICE_NAME, AgentService
from services.agent.server.knowledge import Knowledge
from services.agent.server.state import AgentState, component
from services.common.config import settings
from services.common.metrics import MetricsServer
from services.common.pb.agent.v1 import agent_pb2_grpc
from services.common.runner import GrpcServer
from services.common.tls import TlsFiles, server_credentials
from services.flows.agent_events import AgentEvents
from services.flows.entries import NodeRef
from services.flows.export.keeper import Keeper
from services.flows.metrics.config import parse as metric_groups
from services.flows.observer import HEALTH_NAME


def flow_pipeline(
    config: Config,
    files: TlsFiles | None,
    maps: Mapping[str, PinnedMap],
    knowledge: Knowledge,
    registry: CollectorRegistry,
    events: AgentEvents,
) -> FlowPipeline:
    """From rings to columns to the relay, wired to this node\'s maps."""
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


def cni_server(config: Config, state: AgentState, ends: Endpoints) -> CniServer:
    """The socket; plugin and configuration are in the runtime's folders while it is open and pods are enforced."""
    path = config.place(config.cni_socket, "cni.sock")
    files = CniFiles(config.cni_bin_dir, config.cni_conf_dir, path, config.cni_chain)
    state.checks.append(files.check)
    state.when_ready.append(files.install)

    def unready() -> str:
        return ends.manager.ipam.exhausted() if state.ready else "the agent is starting"

    return CniServer(Path(path), ends.manager, unready, lambda: ends.links.mtu)


def exports(config: Config, pipeline: FlowPipeline, state: AgentState, registry: CollectorRegistry) -> Keeper:
    """Flows into files, where the configuration names some."""
    keeper = Keeper(config, pipeline.store, pipeline.config.node, registry)
    state.checks.append(lambda: component("export", keeper.errors))
    return keeper
