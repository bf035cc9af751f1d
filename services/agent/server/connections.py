"""The connection table for people and for Prometheus: how full, and whose connections they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as MetricCollector

from services.agent.abi.endpoints import HOST_ENDPOINT
from services.agent.datapath.gc import Collector, ConntrackCollector, Records
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.room import Room, Share
from services.agent.endpoints.manager import EndpointManager
from services.agent.server.knowledge import Knowledge
from services.agent.server.state import AgentState, component
from services.common.pb.agent.v1 import agent_pb2 as pb

PRESSURE = 0.9
"""Fill level from which the status says so."""


class Connections(MetricCollector):
    """Registers itself on the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry, collector: Collector, room: Room, manager: EndpointManager) -> None:
        self._collector, self._room, self._manager = collector, room, manager
        registry.register(self)

    def view(self) -> pb.ConnectionTable:
        """For the status."""
        return pb.ConnectionTable(
            entries=self._collector.entries,
            max_entries=self._collector.max_entries,
            quota=self._room.quota,
            heaviest=[self._pod(share) for share in self._room.heaviest() if share.entries],
        )

    def check(self) -> pb.Component:
        """Degraded while the table is nearly full, a pod has all the connections that it may have, or floods."""
        full = f"its quota is {self._room.quota} (ct_quota): new ones are refused"
        problems = {
            f"pod {self._name(share)}": f"has {share.settled} connections, {full}" for share in self._room.at_quota()
        }
        for share in self._room.flooding():
            problems.setdefault(
                f"pod {self._name(share)}", f"floods: {share.flooded} of its new connections were pushed out or refused"
            )
        if self._collector.fill >= PRESSURE:
            most = ", ".join(f"{self._name(s)} ({s.entries})" for s in self._room.heaviest(3) if s.entries)
            problems["table"] = (
                f"{self._collector.entries} of {self._collector.max_entries} entries (ct_max); most has {most}"
            )
        return component("connections", problems)

    def collect(self) -> Iterable[Metric]:
        """What Prometheus asks for."""
        yield GaugeMetricFamily(
            "ciliate_conntrack_entries", "Tracked connections at the last sweep", value=self._collector.entries
        )
        yield GaugeMetricFamily(
            "ciliate_conntrack_pressure", "Part of the connection table in use", value=self._collector.fill
        )
        yield CounterMetricFamily(
            "ciliate_conntrack_collected", "Entries removed by sweeps", value=self._collector.removed_total
        )
        heaviest = GaugeMetricFamily(
            "ciliate_conntrack_heaviest_entries", "The pods with most entries", labels=["namespace", "pod"]
        )
        for share in self._room.heaviest():
            if share.entries:
                heaviest.add_metric(self._labels(share), share.entries)
        yield heaviest
        for name, text in (
            ("evicted", "Half-open connections that were pushed out"),
            ("refused", "Packets that would have opened a connection beyond the quota"),
        ):
            counter = CounterMetricFamily(f"ciliate_conntrack_{name}", text, labels=["namespace", "pod"])
            for share in self._room.shares:
                counter.add_metric(self._labels(share), getattr(share, name))
            yield counter

    def _pod(self, share: Share) -> pb.PodConnections:
        namespace, pod = self._labels(share)
        return pb.PodConnections(
            endpoint=share.endpoint,
            namespace=namespace,
            pod=pod,
            entries=share.entries,
            settled=share.settled,
            evicted=share.evicted,
            refused=share.refused,
        )

    def _labels(self, share: Share) -> list[str]:
        record = self._manager.endpoints.get(share.endpoint)
        return [record.endpoint.namespace, record.endpoint.pod] if record else ["", f"endpoint {share.endpoint}"]

    def _name(self, share: Share) -> str:
        return "/".join(part for part in self._labels(share) if part)


def watch_connections(
    maps: Mapping[str, PinnedMap],
    quota: int,
    knowledge: Knowledge,
    emit: Callable[[Records], None],
    state: AgentState,
    registry: CollectorRegistry,
) -> ConntrackCollector:
    """What keeps the connection table in order and says whose it is. The node itself has no quota."""
    room = Room(maps["ct_usage"], maps["ct_limit"], quota, frozenset({HOST_ENDPOINT}))
    manager = knowledge.manager
    collector = ConntrackCollector(
        maps["ct"], emit, room, knowledge.live_backends, lambda: frozenset(manager.endpoints)
    )
    connections = Connections(registry, collector, room, manager)
    state.connections = connections.view
    state.checks.append(connections.check)
    return collector
