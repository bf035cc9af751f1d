"""Recorded flows as questions to policy. Pure: messages of the Observer API in, distinct flows with counts out."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from services.common.pb.agent.v1 import agent_pb2
from services.common.pb.flow import flow_pb2
from services.model.labels import LabelError, Labels
from services.model.verdict import Direction, DropReason, Protocol
from services.policy.l7 import Request
from services.policy.suggest import Observation

POLICY_DROPS = (DropReason.POLICY_DENIED, DropReason.POLICY_DENY)
CUT_PATH = 136
"""Bytes of a path that records hold; a longer one cannot be asked about."""
TRACE, L7 = 4, 129


@dataclass(frozen=True, slots=True)
class End:
    """One side of a recorded flow."""

    identity: int
    labels: tuple[str, ...]
    address: str
    pod: str

    @property
    def name(self) -> str:
        """What people call it."""
        return self.pod or next((text for text in self.labels if text.startswith("reserved:")), "") or self.address


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a flow says about policy; flows that say the same are one."""

    source: End
    destination: End
    direction: Direction
    protocol: int
    port: int
    forwarded: bool
    request: Request | None = None

    def message(self) -> agent_pb2.RecordedFlow:
        """As asked of an agent."""
        request = self.request or Request("", "")
        return agent_pb2.RecordedFlow(
            connection=agent_pb2.Connection(
                source=_peer(self.source),
                destination=_peer(self.destination),
                protocol=self.protocol,
                port=self.port,
                http_method=request.method,
                http_path=request.path,
            ),
            direction=self.direction.name.lower(),
            forwarded=self.forwarded,
        )

    def observation(self) -> Observation:
        """As seen from the pod whose direction it is; raises `LabelError` for labels that are none."""
        peer = self.source if self.direction == Direction.INGRESS else self.destination
        address = ipaddress.ip_address(peer.address)
        return Observation(self.direction, Labels.parse(peer.labels), address, self.protocol, self.port, self.request)

    @property
    def subject(self) -> End:
        """Whose policy decides."""
        return self.destination if self.direction == Direction.INGRESS else self.source


def distinct(flows: Iterable[flow_pb2.Flow]) -> Counter[Recorded]:
    """The flows that tell a verdict of policy, with how often each was seen."""
    found: Counter[Recorded] = Counter()
    for flow in flows:
        recorded = _recorded(flow)
        if recorded is not None:
            found[recorded] += 1
    return found


def _recorded(flow: flow_pb2.Flow) -> Recorded | None:
    if flow.is_reply.value or flow.traffic_direction not in (flow_pb2.INGRESS, flow_pb2.EGRESS):
        return None
    if flow.verdict not in (flow_pb2.FORWARDED, flow_pb2.DROPPED) or not flow.IP.source:
        return None
    forwarded = flow.verdict == flow_pb2.FORWARDED
    kind = flow.event_type.type
    if kind == TRACE and flow.trace_reason != flow_pb2.NEW:
        return None
    if not forwarded and kind != L7 and flow.drop_reason not in POLICY_DROPS:
        return None
    where = _layer4(flow)
    if where is None:
        return None
    request = None
    if flow.l7.http.method:
        request = Request(flow.l7.http.method, _path(flow.l7.http.url))
        if len(request.path) >= CUT_PATH:
            return None
    elif kind == L7:
        return None
    return Recorded(
        _end(flow.source, flow.IP.source),
        _end(flow.destination, flow.IP.destination),
        Direction(flow.traffic_direction),
        *where,
        forwarded,
        request,
    )


def _layer4(flow: flow_pb2.Flow) -> tuple[int, int] | None:
    match flow.l4.WhichOneof("protocol"):
        case "TCP":
            return Protocol.TCP, flow.l4.TCP.destination_port
        case "UDP":
            return Protocol.UDP, flow.l4.UDP.destination_port
        case "SCTP":
            return Protocol.SCTP, flow.l4.SCTP.destination_port
        case "ICMPv4":
            return Protocol.ICMP, flow.l4.ICMPv4.type
        case "ICMPv6":
            return Protocol.ICMPV6, flow.l4.ICMPv6.type
        case _:
            return None


def _path(url: str) -> str:
    split = urlsplit(url)
    return split.path + (f"?{split.query}" if split.query else "")


def _end(endpoint: flow_pb2.Endpoint, address: str) -> End:
    pod = f"{endpoint.namespace}/{endpoint.pod_name}" if endpoint.pod_name else ""
    return End(endpoint.identity, tuple(endpoint.labels), address, pod)


def _peer(end: End) -> agent_pb2.Peer:
    return agent_pb2.Peer(identity=end.identity, labels=end.labels, address=end.address, pod=end.pod)


def observed_at(
    recorded: Mapping[Recorded, int], selector: Mapping[str, str], namespace: str
) -> dict[Observation, int]:
    """What was let pass at the pods that a selector means, with counts."""
    found: Counter[Observation] = Counter()
    for one, times in recorded.items():
        if not one.forwarded or not one.subject.pod.startswith(f"{namespace}/"):
            continue
        wanted = {f"k8s:{key}={value}" if value else f"k8s:{key}" for key, value in selector.items()}
        if not wanted <= set(one.subject.labels):
            continue
        try:
            found[one.observation()] += times
        except (LabelError, ValueError):
            continue
    return dict(found)
