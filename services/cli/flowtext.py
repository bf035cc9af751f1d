"""Flows as text, in the field's formats. Pure: messages in, lines out.

compact: `<time>: <source> <identity> -> <destination> <identity> <type> <verdict> (<summary>)`
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from services.cli.drop_texts import DROP_TEXTS
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2
from services.flows.flags import TRACE_POINTS
from services.model.identity import Reserved

_MATCHES = ("none", "L3-Only", "L3-L4", "L4-Only", "all", "L3-Proto", "Proto-Only")
_VERDICTS_OF_POLICY = {
    flow_pb2.FORWARDED: "ALLOWED",
    flow_pb2.REDIRECTED: "ALLOWED",
    flow_pb2.DROPPED: "DENIED",
    flow_pb2.ERROR: "DENIED",
    flow_pb2.AUDIT: "AUDITED",
}


@dataclass(frozen=True, slots=True)
class Style:
    """What to show of a flow."""

    node_names: bool = False
    policy_names: bool = True
    numeric: bool = False
    color: bool = False


def clean(text: str) -> str:
    """Text from pods must not steer the terminal: control characters are shown, not sent."""
    return "".join(c if c.isprintable() else "^[" if c == "\x1b" else f"\\x{ord(c):02x}" for c in text)


def timestamp(message: observer_pb2.GetFlowsResponse | flow_pb2.Flow) -> str:
    """`Nov 23 05:01:42.123`, UTC."""
    if not message.HasField("time"):
        return "N/A"
    moment = message.time.ToDatetime(tzinfo=datetime.UTC)
    return f"{moment:%b} {moment.day:2d} {moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"


def host(flow: flow_pb2.Flow, side: str, *, numeric: bool = False) -> str:
    """The best name of one end with its port: pod, Service, DNS names, address."""
    end: flow_pb2.Endpoint = getattr(flow, side)
    service: flow_pb2.Service = getattr(flow, f"{side}_service")
    names = getattr(flow, f"{side}_names")
    address = getattr(flow.IP, side)
    if not address:
        return clean(getattr(flow.ethernet, side))
    namespace = service.namespace or end.namespace
    if numeric:
        name = address
    elif end.pod_name:
        name = f"{namespace}/{end.pod_name}" if namespace else end.pod_name
    elif service.name:
        name = f"{namespace}/{service.name}" if namespace else service.name
    else:
        name = ",".join(names) or address
    port = _port(flow, side)
    if not port:
        return clean(name)
    return clean(f"[{name}]:{port}" if name == address and ":" in address else f"{name}:{port}")


def _port(flow: flow_pb2.Flow, side: str) -> int:
    protocol = flow.l4.WhichOneof("protocol")
    if protocol not in {"TCP", "UDP", "SCTP"}:
        return 0
    return int(getattr(getattr(flow.l4, protocol), f"{side}_port"))


def identity(end: flow_pb2.Endpoint) -> str:
    """`(world)`, `(ID:1234)`."""
    if end.identity <= max(Reserved):
        return f"({Reserved(end.identity).name.lower().replace('_', '-')})"
    return f"(ID:{end.identity})"


def event_type(flow: flow_pb2.Flow) -> str:
    """What kind of event it was: a trace point, a drop's reason, a policy verdict, an HTTP request."""
    if flow.HasField("l7"):
        record = flow.l7.WhichOneof("record") or "l7"
        kind = flow_pb2.L7FlowType.Name(flow.l7.type).lower()
        source = f" {flow.l7.dns.observation_source}" if record == "dns" else ""
        return f"{record}-{kind}{source}"
    number, sub = flow.event_type.type, flow.event_type.sub_type
    match number:
        case 1:
            return DROP_TEXTS.get(sub, str(sub))
        case 3:
            return flow_pb2.DebugCapturePoint.Name(flow.debug_capture_point)
        case 4:
            return TRACE_POINTS[sub] if sub < len(TRACE_POINTS) else str(sub)
        case 5:
            matched = flow.policy_match_type
            how = _MATCHES[matched] if matched < len(_MATCHES) else "unknown"
            return f"policy-verdict:{how} {flow_pb2.TrafficDirection.Name(flow.traffic_direction)}"
        case _:
            return "UNKNOWN"


def verdict(flow: flow_pb2.Flow, *, policy_names: bool = False) -> str:
    """The verdict, and on request the policies that decided."""
    name = flow_pb2.Verdict.Name(flow.verdict)
    if flow.event_type.type == 5:
        name = _VERDICTS_OF_POLICY.get(flow.verdict, name)
    deciders = [f"{each.name} ({each.kind})" for each in deciding_policies(flow) if each.name and each.kind]
    return f"{name} BY {clean(', '.join(deciders))}" if policy_names and deciders else name


def deciding_policies(flow: flow_pb2.Flow) -> list[flow_pb2.Policy]:
    """The policies that allowed or denied the flow, in its direction; both where the direction is unknown."""
    ingress = [*flow.ingress_allowed_by, *flow.ingress_denied_by]
    egress = [*flow.egress_allowed_by, *flow.egress_denied_by]
    if flow.traffic_direction == flow_pb2.INGRESS:
        return ingress
    return egress if flow.traffic_direction == flow_pb2.EGRESS else ingress + egress


def compact(flow: flow_pb2.Flow, style: Style = Style()) -> str:
    """One line; a reply is shown with its ends swapped and `<-`, so that a connection reads one way."""
    near, far = ("destination", "source") if flow.is_reply.value else ("source", "destination")
    arrow = "<>" if not flow.HasField("is_reply") else "<-" if flow.is_reply.value else "->"
    node = f" [{clean(flow.node_name)}]" if style.node_names else ""
    ends = [f"{host(flow, side, numeric=style.numeric)} {identity(getattr(flow, side))}" for side in (near, far)]
    summary = f" ({clean(flow.Summary)})" if flow.Summary else ""
    what = verdict(flow, policy_names=style.policy_names)
    if style.color:
        what = f"\x1b[{_color(flow)}m{what}\x1b[0m"
    return f"{timestamp(flow)}{node}: {ends[0]} {arrow} {ends[1]} {clean(event_type(flow))} {what}{summary}"


def _color(flow: flow_pb2.Flow) -> int:
    if flow.verdict in (flow_pb2.DROPPED, flow_pb2.ERROR):
        return 31
    return 33 if flow.verdict == flow_pb2.AUDIT else 32


def row(flow: flow_pb2.Flow, style: Style = Style()) -> dict[str, str]:
    """The fields of the table and dict formats."""
    found = {"TIMESTAMP": timestamp(flow)}
    if style.node_names:
        found["NODE"] = clean(flow.node_name)
    return found | {
        "SOURCE": host(flow, "source", numeric=style.numeric),
        "DESTINATION": host(flow, "destination", numeric=style.numeric),
        "TYPE": clean(event_type(flow)),
        "VERDICT": verdict(flow, policy_names=style.policy_names),
        "SUMMARY": clean(flow.Summary),
    }


def lost(message: observer_pb2.GetFlowsResponse) -> str:
    """The line for events that were lost: never hidden."""
    event = message.lost_events
    source = flow_pb2.LostEventSource.Name(event.source)
    return f"{timestamp(message)} EVENTS LOST: {source} CPU({event.cpu.value}) {event.num_events_lost}"


def node_status(message: observer_pb2.GetFlowsResponse) -> str:
    """The line for a change of the nodes that the answer comes from; empty for those of no interest."""
    status = message.node_status
    names = ", ".join(status.node_names)
    match status.state_change:
        case 2:
            return (
                f"{timestamp(message)} [{message.node_name}]: {len(status.node_names)} nodes are unavailable: {names}"
            )
        case 4:
            return f"{timestamp(message)} [{message.node_name}]: error {status.message!r} on: {names}"
        case _:
            return ""
