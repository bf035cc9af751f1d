"""`--explain`: which rule decided a flow, and where none did, which came nearest. Pure: messages in, lines out."""

from __future__ import annotations

from services.cli import flowtext
from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2

RULE_LABEL = "ciliate:rule="
POLICY_DROPS = (flow_pb2.POLICY_DENIED, flow_pb2.POLICY_DENY)


def lines(flow: flow_pb2.Flow) -> list[str]:
    """What to print below a flow."""
    details = details_pb2.FlowDetails()
    flow.extensions.Unpack(details)
    found = _decision(flow, details)
    if details.process.name:
        found.append(f"process {_process(details.process)}")
    return [f"    {flowtext.clean(text)}" for text in found]


def _decision(flow: flow_pb2.Flow, details: details_pb2.FlowDetails) -> list[str]:
    deciders = [_policy(policy) for policy in flowtext.deciding_policies(flow)]
    side = {flow_pb2.INGRESS: "ingress of the destination", flow_pb2.EGRESS: "egress of the source"}
    where = side.get(flow.traffic_direction, "either side")
    if details.default_deny:
        isolating = f"isolated by {', '.join(deciders)}" if deciders else "isolated"
        found = [f"no rule matched at {where}: default deny, {isolating}"]
        if details.nearest_rule:
            missed = " and ".join(details.nearest_failed)
            found.append(f"nearest rule: {details.nearest_rule}: its {missed} did not match")
        return found
    if deciders:
        word = {flow_pb2.DROPPED: "denied", flow_pb2.AUDIT: "would be denied"}.get(flow.verdict, "allowed")
        return [f"{word} at {where} by {', '.join(deciders)}"]
    if flow.verdict == flow_pb2.DROPPED and flow.drop_reason_desc not in POLICY_DROPS:
        return [f"dropped for another reason than policy: {flow_pb2.DropReason.Name(flow.drop_reason_desc)}"]
    return [f"no policy selects {where.rpartition(' ')[2]} in this direction, or the connection was decided before"]


def _policy(policy: flow_pb2.Policy) -> str:
    rule = next((text.removeprefix(RULE_LABEL) for text in policy.labels if text.startswith(RULE_LABEL)), "")
    name = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
    place = f" {rule}" if rule else ""
    return f"{policy.kind} {name}{place} (revision {policy.revision})"


def _process(process: details_pb2.Process) -> str:
    executable = f" {process.executable}" if process.executable else ""
    container = f", container {process.container}" if process.container else ""
    return f"{process.name} (pid {process.pid}){executable}{container}"
