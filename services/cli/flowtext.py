"""Flows as text, in the field's formats. Pure: messages in, lines out.

compact: `<time>: <source> <identity> -> <destination> <identity> <type> <verdict> (<summary>)`
"""

from __future__ import annotations

from dataclasses import dataclass

from services.cli import time_formats
from services.cli.drop_texts import DROP_TEXTS
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2
from services.common.pb.relay import relay_pb2
from services.flows.flags import TRACE_POINTS
from services.model.identity import Reserved

_MATCHES = ("none", "L3-Only", "L3-L4", "L4-Only", "all", "L3-Proto", "Proto-Only")
_XLATE_POINTS = {1: "pre-xlate-fwd", 2: "post-xlate-fwd", 3: "pre-xlate-rev", 4: "post-xlate-rev"}
_VERDICTS_OF_POLICY = {
    flow_pb2.FORWARDED: "ALLOWED",
    flow_pb2.REDIRECTED: "ALLOWED",
    flow_pb2.DROPPED: "DENIED",
    flow_pb2.ERROR: "DENIED",
    flow_pb2.AUDIT: "AUDITED",
}


RED, GREEN, YELLOW, MAGENTA, CYAN = 31, 32, 33, 35, 36
NAMES_WIDTH = 50

Timed = (
    observer_pb2.GetFlowsResponse
    | observer_pb2.GetAgentEventsResponse
    | observer_pb2.GetDebugEventsResponse
    | flow_pb2.Flow
)


@dataclass(frozen=True, slots=True)
class Style:
    """What to show of a flow."""

    node_names: bool = False
    policy_names: bool = True
    numeric: bool = False
    color: bool = False
    time_format: str = time_formats.STAMP
    debug: bool = False
    """Also which nodes an answer comes from."""


def clean(text: str) -> str:
    """Text from pods must not steer the terminal: control characters are shown, not sent."""
    return "".join(c if c.isprintable() else "^[" if c == "\x1b" else f"\\x{ord(c):02x}" for c in text)


def timestamp(message: Timed, style: Style) -> str:
    """`Nov 23 05:01:42.123`, UTC, or as the style says."""
    if not message.HasField("time"):
        return "N/A"
    return time_formats.text(message.time.seconds, message.time.nanos, style.time_format)


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
            return DROP_TEXTS.get(sub, f"{sub}, 0")
        case 3:
            return flow_pb2.DebugCapturePoint.Name(flow.debug_capture_point)
        case 4:
            return TRACE_POINTS[sub] if sub < len(TRACE_POINTS) else str(sub)
        case 5:
            matched = flow.policy_match_type
            how = _MATCHES[matched] if matched < len(_MATCHES) else "unknown"
            return f"policy-verdict:{how} {flow_pb2.TrafficDirection.Name(flow.traffic_direction)}"
        case 7:
            return _XLATE_POINTS.get(flow.sock_xlate_point, "UNKNOWN")
        case _:
            return "UNKNOWN"


def summary(flow: flow_pb2.Flow) -> str:
    """The last column: what the flow says of itself, its trace and its authentication."""
    trace = f"IP Trace ID: {flow.ip_trace_id.trace_id}; " if flow.ip_trace_id.trace_id else ""
    auth = f"; Auth: {flow_pb2.AuthType.Name(flow.auth_type)}" if flow.auth_type else ""
    return clean(f"{trace}{flow.Summary}{auth}")


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
    ends = [_end(flow, side, style) for side in (near, far)]
    more = f" ({text})" if (text := summary(flow)) else ""
    what = verdict(flow, policy_names=style.policy_names)
    what = painted(what, _color(flow), style)
    return f"{timestamp(flow, style)}{node}: {ends[0]} {arrow} {ends[1]} {clean(event_type(flow))} {what}{more}"


def _end(flow: flow_pb2.Flow, side: str, style: Style) -> str:
    number = painted(identity(getattr(flow, side)), MAGENTA, style)
    return f"{_painted_host(flow, side, style)} {number}"


def _painted_host(flow: flow_pb2.Flow, side: str, style: Style) -> str:
    text = host(flow, side, numeric=style.numeric)
    port = str(_port(flow, side) or "")
    if not port or not style.color:
        return painted(text, CYAN, style)
    return painted(text.removesuffix(port), CYAN, style) + painted(port, YELLOW, style)


def painted(text: str, color: int, style: Style) -> str:
    """Text in a colour, where the style has colours."""
    return f"\x1b[{color}m{text}\x1b[0m" if style.color else text


def _color(flow: flow_pb2.Flow) -> int:
    if flow.verdict in (flow_pb2.DROPPED, flow_pb2.ERROR):
        return RED
    return YELLOW if flow.verdict == flow_pb2.AUDIT else GREEN


def row(flow: flow_pb2.Flow, style: Style = Style()) -> dict[str, str]:
    """The fields of the table and dict formats."""
    found = {"TIMESTAMP": timestamp(flow, style)}
    if style.node_names:
        found["NODE"] = clean(flow.node_name)
    return found | {
        "SOURCE": host(flow, "source", numeric=style.numeric),
        "DESTINATION": host(flow, "destination", numeric=style.numeric),
        "TYPE": clean(event_type(flow)),
        "VERDICT": verdict(flow, policy_names=style.policy_names),
        "SUMMARY": summary(flow),
    }


def _lost_text(event: flow_pb2.LostEvent, style: Style) -> str:
    text = f"{flow_pb2.LostEventSource.Name(event.source)} CPU({event.cpu.value}) {event.num_events_lost}"
    if not event.HasField("first") or not event.HasField("last"):
        return text
    first, last = (
        time_formats.text(stamp.seconds, stamp.nanos, style.time_format) for stamp in (event.first, event.last)
    )
    return f"{text} (first: {first}, last: {last})"


def lost(message: observer_pb2.GetFlowsResponse, style: Style = Style()) -> str:
    """The line for events that were lost: never hidden."""
    node = f" [{clean(message.node_name)}]" if style.node_names else ""
    title = painted("EVENTS LOST", RED, style)
    return f"{timestamp(message, style)}{node} {title}: {_lost_text(message.lost_events, style)}"


def lost_row(message: observer_pb2.GetFlowsResponse, style: Style = Style()) -> dict[str, str]:
    """The same for the table and dict formats."""
    found = {"TIMESTAMP": timestamp(message, style)}
    if style.node_names:
        found["NODE"] = clean(message.node_name)
    return found | {
        "SOURCE": "",
        "DESTINATION": "",
        "TYPE": "EVENTS LOST",
        "VERDICT": "-",
        "SUMMARY": _lost_text(message.lost_events, style),
    }


def node_status(message: observer_pb2.GetFlowsResponse, style: Style = Style()) -> str:
    """The line for a change of the nodes that the answer comes from; empty for those of no interest."""
    status = message.node_status
    count, names = len(status.node_names), _some(list(status.node_names))
    match status.state_change:
        case relay_pb2.NODE_CONNECTED if style.debug:
            text = f"Receiving flows from {count} nodes: {names}"
        case relay_pb2.NODE_UNAVAILABLE:
            text = f"{count} nodes are unavailable: {names}"
        case relay_pb2.NODE_GONE if style.debug:
            text = f"{count} nodes removed from cluster: {names}"
        case relay_pb2.NODE_ERROR:
            text = f'Error "{clean(status.message)}" on {count} nodes: {names}'
        case _:
            return ""
    return f"{timestamp(message, style)} [{clean(message.node_name)}]: {text}"


def _some(names: list[str]) -> str:
    """As many names as fit."""
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join([*shown, name])) > NAMES_WIDTH:
            return f"{', '.join(map(clean, shown))} (and {len(names) - len(shown)} more)"
        shown.append(name)
    return ", ".join(map(clean, shown))
