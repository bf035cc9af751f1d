"""How the agent's parts are, put together from what each of them says about itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from services.agent.datapath.sink import DatapathSink
from services.agent.endpoints.registrar import Registrar
from services.agent.events.pipeline import FlowPipeline
from services.agent.server.cni import CniServer
from services.agent.server.state import AgentState, Check, component
from services.agent.sources.base import Source
from services.common.pb.agent.v1 import agent_pb2 as pb


class Synced(Protocol):
    """Whether the maps were once made equal to what they should hold."""

    @property
    def synced(self) -> bool: ...

    @property
    def batches(self) -> int: ...

    @property
    def changes(self) -> int: ...


class RuleErrors(Protocol):
    """L7 rules that cannot be enforced."""

    @property
    def errors(self) -> tuple[str, ...]: ...


def describe(
    state: AgentState,
    sources: Sequence[Source],
    driver: Synced,
    sink: DatapathSink,
    registrar: Registrar,
    cni: CniServer,
    rules: Sequence[RuleErrors],
    registry: CollectorRegistry,
) -> None:
    """Tell the state whom to ask for what."""
    objects = [source for source in sources if source.name != "identities"]
    identities = [source for source in sources if source.name == "identities"]
    state.reporting = [lambda source=source: source.errors for source in objects]  # type: ignore[misc]
    state.checks = [
        lambda: component("objects", _merged(objects), not driver.synced),
        lambda: component("identities", _merged(identities) | dict(registrar.errors), not driver.synced),
        lambda: component("datapath", _map_errors(sink), not driver.synced),
    ]
    state.rule_errors = lambda: tuple(error for each in rules for error in each.errors)
    state.lost = lambda: _samples(registry, "ciliate_events_lost")
    state.counters = [
        lambda: {f"cni:{command}:{outcome}": count for (command, outcome), count in cni.calls.items()},
        lambda: {"driver:batches": driver.batches, "driver:changes": driver.changes},
        lambda: _samples(registry, "ciliate_events_read"),
    ]


class StatusReport(Protocol):
    """What is written back to policy objects."""

    errors: dict[str, str]
    written: int

    def metrics(self) -> Iterator[Metric]: ...


class _Collected(Collector):
    def __init__(self, report: StatusReport) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        return self._report.metrics()


def describe_status_writer(state: AgentState, report: StatusReport, registry: CollectorRegistry) -> None:
    """Tell people whether policies say on their own objects what became of them."""
    state.checks.append(
        lambda: component("policy status", report.errors, good=f"{report.written} conditions written by this node")
    )
    state.counters.append(lambda: {"policy-status:written": report.written})
    registry.register(_Collected(report))


def relay_check(pipeline: FlowPipeline) -> Check:
    """Whether flows reach the relay; a node without one is fine."""

    def check() -> pb.Component:
        if not pipeline.config.relay_target:
            return component("relay", {}, good="none is configured: flows stay on this node")
        if pipeline.pusher is None or not pipeline.pusher.connected:
            waiting = f"{pipeline.config.relay_target} does not answer; {len(pipeline.buffer)} batches wait"
            return component("relay", {"relay": waiting})
        return component("relay", {}, good=pipeline.config.relay_target)

    return check


def _merged(sources: Sequence[Source]) -> dict[str, str]:
    return {where: what for source in sources for where, what in source.errors.items()}


def _map_errors(sink: DatapathSink) -> dict[str, str]:
    pending = {name: len(reconciler.pending) for name, reconciler in sink.reconcilers.items() if reconciler.pending}
    return {
        f"map {name}": f"map {name}: {count} entries are refused: {sink.reconcilers[name].last_error}"
        for name, count in pending.items()
    }


def _samples(registry: CollectorRegistry, family: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for metric in registry.collect():
        if metric.name == family:
            for sample in metric.samples:
                found[":".join(sample.labels.values()) or family] = int(sample.value)
    return found
