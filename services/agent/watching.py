"""Parts that look at the kernel and tell: processes, refused connects, sockets of backends that are gone."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

from prometheus_client import CollectorRegistry

from services.agent.calc.engine import Engine
from services.agent.config import Config
from services.agent.datapath.sock_sweep import SocketSweeper
from services.agent.events.pipeline import FlowPipeline
from services.agent.kernel import Kernel
from services.agent.pods import Endpoints
from services.agent.processes import Processes
from services.agent.refusals import NodeOwner, Owners, Refusals
from services.agent.server.health import describe_status_writer
from services.agent.server.health_checks import HealthChecks
from services.agent.server.knowledge import Knowledge
from services.agent.server.state import AgentState, component
from services.agent.sources.kubernetes_status import StatusWriter


def health_checks(engine: Engine, state: AgentState) -> HealthChecks:
    """Answers for `healthCheckNodePort`."""
    health = HealthChecks(engine.load_balancing.health_checks)
    state.checks.append(lambda: component("service health checks", health.errors))
    return health


def watch_sockets(kernel: Kernel, knowledge: Knowledge, state: AgentState) -> SocketSweeper:
    """Closes sockets whose backend is gone."""
    sweeper = SocketSweeper(kernel.maps["sockets"], knowledge.live_backends, knowledge.namespaces)
    state.checks.append(kernel.sockets.check)
    state.counters.append(lambda: {"sockets:closed": sweeper.closed_total})
    return sweeper


def watch_processes(
    config: Config, stack: AsyncExitStack, kernel: Kernel, ends: Endpoints, pipeline: FlowPipeline, state: AgentState
) -> Processes:
    """Whose sockets they are."""
    processes = Processes(kernel.loaded, config.cgroup_root, wanted=config.flow_processes)
    owners = Owners(NodeOwner(config.addresses), ends.manager.local, time.monotonic)
    processes.open(pipeline.store.dictionaries, owners)
    stack.callback(processes.close)
    if processes.table is not None:
        pipeline.name_processes(processes.table, processes.take)
    state.checks.append(processes.check)
    return processes


def watch_refusals(
    config: Config, stack: AsyncExitStack, kernel: Kernel, ends: Endpoints, pipeline: FlowPipeline
) -> Refusals:
    """Connects that were refused at the socket, as flows."""
    owners = Owners(NodeOwner(config.addresses), ends.manager.local, time.monotonic)
    refusals = Refusals(kernel.maps["sock_events"].fd, owners, pipeline.add)
    stack.callback(refusals.close)
    return refusals


def described(writer: StatusWriter | None, state: AgentState, registry: CollectorRegistry) -> StatusWriter | None:
    """The writer of policies\' statuses, told of in the agent\'s own condition."""
    if writer is not None:
        describe_status_writer(state, writer, registry)
    return writer
