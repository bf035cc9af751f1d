"""`--aggregate-by`: flows counted by what they have in common, with traffic, handshake times and durations. Pure.

Traffic and durations are those of connections that ended within the answer, so that nothing is counted twice; a
connection between two pods is seen at both, hence `direction` among the keys when that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.cli import flowtext
from services.common.errors import Invalid
from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2

MAX_GROUPS = 100_000


def _workload(end: flow_pb2.Endpoint) -> str:
    name = end.workloads[0].name if end.workloads else end.pod_name
    return f"{end.namespace}/{name}" if name else ",".join(end.labels) or flowtext.identity(end)


def _port(flow: flow_pb2.Flow) -> str:
    kind = flow.l4.WhichOneof("protocol") or ""
    number = getattr(getattr(flow.l4, kind), "destination_port", "") if kind else ""
    return f"{number}/{kind}" if number != "" else kind


def _process(flow: flow_pb2.Flow) -> str:
    details = details_pb2.FlowDetails()
    flow.extensions.Unpack(details)
    return details.process.executable or details.process.name


KEYS: dict[str, Callable[[flow_pb2.Flow], str]] = {
    "source": lambda flow: _workload(flow.source),
    "destination": lambda flow: _workload(flow.destination),
    "source-pod": lambda flow: flowtext.host(flow, "source"),
    "destination-pod": lambda flow: flowtext.host(flow, "destination"),
    "source-namespace": lambda flow: flow.source.namespace,
    "destination-namespace": lambda flow: flow.destination.namespace,
    "port": _port,
    "verdict": lambda flow: flow_pb2.Verdict.Name(flow.verdict),
    "reason": lambda flow: flow_pb2.DropReason.Name(flow.drop_reason_desc) if flow.drop_reason_desc else "",
    "policy": lambda flow: ", ".join(sorted({policy.name for policy in flowtext.deciding_policies(flow)})),
    "direction": lambda flow: flow_pb2.TrafficDirection.Name(flow.traffic_direction).lower(),
    "service": lambda flow: flow.destination_service.name,
    "method": lambda flow: flow.l7.http.method,
    "node": lambda flow: flow.node_name,
    "process": _process,
}
"""What flows can be counted by."""


@dataclass(slots=True)
class _Group:
    flows: int = 0
    packets: int = 0
    bytes: int = 0
    rtts: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)


class Groups:
    """Counts as flows are added."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Raises `Invalid` for a key that is not known."""
        for key in keys:
            if key not in KEYS:
                raise Invalid(f"--aggregate-by: {key!r} is not known; use some of {', '.join(KEYS)}")
        self._keys = list(dict.fromkeys(keys))
        self._groups: dict[tuple[str, ...], _Group] = {}
        self.titles = [*self._keys, "flows", "packets", "bytes", "rtt p50", "rtt p99", "duration p50", "duration p99"]

    def add(self, flow: flow_pb2.Flow) -> None:
        """Count one flow. Raises `Invalid` when the keys tell more apart than anybody could read."""
        key = tuple(KEYS[name](flow) for name in self._keys)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                raise Invalid(f"--aggregate-by: more than {MAX_GROUPS} groups; use fewer keys or a filter")
            group = self._groups[key] = _Group()
        group.flows += 1
        details = details_pb2.FlowDetails()
        if flow.extensions.Unpack(details) and details.kind == details_pb2.FlowDetails.CLOSE:
            group.packets += details.packets + details.reply_packets
            group.bytes += details.bytes + details.reply_bytes
            group.durations.append(details.duration_us)
            if details.rtt_us:
                group.rtts.append(details.rtt_us)

    def items(self) -> list[dict[str, Any]]:
        """Largest first."""
        ordered = sorted(self._groups.items(), key=lambda each: (-each[1].flows, each[0]))
        return [dict(zip(self._keys, key, strict=True)) | _figures(group) for key, group in ordered]


def _figures(group: _Group) -> dict[str, Any]:
    found: dict[str, Any] = {"flows": group.flows, "packets": group.packets, "bytes": group.bytes}
    for name, values in (("rtt", group.rtts), ("duration", group.durations)):
        values.sort()
        for percent in (50, 99):
            found[f"{name} p{percent}"] = duration(values[-(-percent * len(values) // 100) - 1]) if values else ""
    return found


def duration(microseconds: int) -> str:
    """`350us`, `1.2ms`, `3.4s`."""
    if microseconds < 1000:
        return f"{microseconds}us"
    return f"{microseconds / 1000:.1f}ms" if microseconds < 1_000_000 else f"{microseconds / 1e6:.1f}s"
