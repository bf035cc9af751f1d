"""A flow -> the debug event that the datapath of the field would have told of it (the Hubble API, 1.7 and 5.9). Pure.

Our programs write no debug messages; what their records say is told in those words: a connection was made, its verdict
changed, policy denied a packet, a packet was dropped. `arg1` to `arg3` are what the message names.
"""

from __future__ import annotations

from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2 as pb

Details = details_pb2.FlowDetails
POLICY_REASONS = (flow_pb2.POLICY_DENIED, flow_pb2.POLICY_DENY)


def debug_event(response: pb.GetFlowsResponse) -> pb.GetDebugEventsResponse | None:
    """None for what is no event of the datapath: losses, requests, counters of a connection that goes on."""
    details = details_pb2.FlowDetails()
    if response.WhichOneof("response_types") != "flow" or not response.flow.extensions.Unpack(details):
        return None
    event = _event(response.flow, details)
    if event is None:
        return None
    found = pb.GetDebugEventsResponse(debug_event=event, node_name=response.node_name)
    found.time.CopyFrom(response.time)
    return found


def _event(flow: flow_pb2.Flow, details: Details) -> flow_pb2.DebugEvent | None:
    six = flow.IP.ipVersion == flow_pb2.IPv6
    match details.kind:
        case Details.NEW:
            kind = flow_pb2.DBG_CT_CREATED6 if six else flow_pb2.DBG_CT_CREATED4
            arguments = (flow.source.identity, flow.destination.identity, details.policy_revision)
            text = f"CT created {_tuple(flow)} srcID={arguments[0]} dstID={arguments[1]} revision={arguments[2]}"
        case Details.VERDICT_CHANGE:
            kind = flow_pb2.DBG_CT_VERDICT
            arguments = (flow.verdict, flow.drop_reason, details.policy_revision)
            verdict = flow_pb2.Verdict.Name(flow.verdict)
            text = f"CT verdict {_tuple(flow)}: {verdict} revision={details.policy_revision}"
        case Details.DROP if flow.drop_reason_desc in POLICY_REASONS or flow.event_type.type == 5:
            kind = flow_pb2.DBG_POLICY_DENIED
            arguments = (flow.source.identity, flow.destination.identity, details.policy_revision)
            text = f"Policy denied from {arguments[0]} to {arguments[1]}: {_tuple(flow)}"
        case Details.DROP:
            kind = flow_pb2.DBG_ERROR_RET
            arguments = (flow.drop_reason, 0, 0)
            text = f"dropped for {flow_pb2.DropReason.Name(flow.drop_reason_desc)}: {_tuple(flow)}"
        case _:
            return None
    event = flow_pb2.DebugEvent(type=kind, message=text)
    for name, value in zip(("arg1", "arg2", "arg3"), arguments, strict=True):
        getattr(event, name).value = value
    local = flow.destination if flow.traffic_direction == flow_pb2.INGRESS else flow.source
    if local.ID:
        event.source.CopyFrom(local)
    return event


def _tuple(flow: flow_pb2.Flow) -> str:
    protocol = flow.l4.WhichOneof("protocol") or "?"
    ports = getattr(flow.l4, protocol, None)
    source, destination = getattr(ports, "source_port", 0), getattr(ports, "destination_port", 0)
    return f"{flow.IP.source}:{source} -> {flow.IP.destination}:{destination} {protocol}"
