"""`ciliate observe agent-events` and `debug-events`: what nodes say of themselves, one line each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import PurePath

import grpc.aio
from google.protobuf.json_format import MessageToDict

from services.cli import connect, flowtext, output
from services.cli.flowtext import Style, clean
from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2 as pb
from services.common.pb.observer import observer_pb2_grpc
from services.common.tls import channel

DEFAULT_LAST = 20

Event = pb.GetAgentEventsResponse | pb.GetDebugEventsResponse


async def show(
    servers: connect.Servers, kind: str, asked: pb.GetFlowsRequest, node: str, style: Style, how: str
) -> None:
    """Print every node's events (or one node's) as they come."""
    if asked.whitelist or asked.blacklist:
        raise Invalid(f"filters are for flows; {kind} have none")
    call = (pb.GetAgentEventsRequest if kind == "agent-events" else pb.GetDebugEventsRequest)(
        number=asked.number or (0 if asked.HasField("since") or asked.HasField("until") else DEFAULT_LAST),
        follow=asked.follow,
    )
    if asked.HasField("since"):
        call.since.CopyFrom(asked.since)
    if asked.HasField("until"):
        call.until.CopyFrom(asked.until)
    rows: list[dict[str, str]] = []
    agents = connect.known_agents(servers, node)
    await connect.together([_one(_events(name, target, call), style, how, rows) for name, target in agents])
    if how == "table":
        titles = list(rows[0]) if rows else []
        output.say(output.render(rows, [(title, title) for title in titles], output.Output.TABLE, "no events"))


async def _one(events: AsyncIterator[Event], style: Style, how: str, rows: list[dict[str, str]]) -> None:
    async for event in events:
        if how == "table":
            rows.append(row(event, style))
        elif how in ("json", "jsonpb"):
            output.say(output.json_line(event))
        elif how == "yaml":
            output.say("---\n" + output.as_yaml(MessageToDict(event, preserving_proto_field_name=True)))
        elif how == "dict":
            pairs = row(event, style)
            output.say("\n".join(f"{title:>9}: {text}" for title, text in pairs.items()) + "\n" + "-" * 12)
        else:
            output.say(line(event, style))


async def _events(
    node: str, target: str, call: pb.GetAgentEventsRequest | pb.GetDebugEventsRequest
) -> AsyncIterator[Event]:
    """From the socket that is open to root alone, beside the agent's."""
    socket = f"unix://{PurePath(target.removeprefix('unix://')).with_name('hubble.sock')}"
    async with channel(socket, None, "agent") as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        method = stub.GetAgentEvents if isinstance(call, pb.GetAgentEventsRequest) else stub.GetDebugEvents
        try:
            async for event in method(call):
                yield event
        except grpc.aio.AioRpcError as error:
            raise connect.explain(f"agent of {node}" if node else "agent", socket, error) from error


def line(event: Event, style: Style) -> str:
    """`<time>[ <node>]: <type> (<details>)`."""
    pairs = row(event, style)
    node = f" [{pairs['NODE']}]" if style.node_names else ""
    if isinstance(event, pb.GetAgentEventsResponse):
        return f"{pairs['TIMESTAMP']}{node}: {pairs['TYPE']} ({pairs['DETAILS']})"
    mark, cpu = pairs["MARK"], pairs["CPU"]
    return f"{pairs['TIMESTAMP']}{node}: {pairs['FROM']} {pairs['TYPE']} MARK: {mark} CPU: {cpu} ({pairs['MESSAGE']})"


def row(event: Event, style: Style) -> dict[str, str]:
    """The fields of an event."""
    found = {"TIMESTAMP": flowtext.timestamp(event, style)}
    if style.node_names:
        found["NODE"] = clean(event.node_name)
    if isinstance(event, pb.GetAgentEventsResponse):
        kind = flow_pb2.AgentEventType.Name(event.agent_event.type)
        return found | {"TYPE": kind, "DETAILS": clean(details(event.agent_event))}
    debug = event.debug_event
    return found | {
        "FROM": clean(_source(debug)),
        "TYPE": flow_pb2.DebugEventType.Name(debug.type),
        "MARK": f"{debug.hash.value:#x}" if debug.HasField("hash") else "N/A",
        "CPU": f"{debug.cpu.value:02d}" if debug.HasField("cpu") else "N/A",
        "MESSAGE": clean(debug.message),
    }


def _source(event: flow_pb2.DebugEvent) -> str:
    if not event.HasField("source"):
        return "N/A"
    end = event.source
    reserved = next((text for text in end.labels if text.startswith("reserved:")), "")
    name = f"{end.namespace}/{end.pod_name}" if end.pod_name else reserved
    return f"{name} (ID: {end.ID})" if name else f"ID: {end.ID}"


def details(event: flow_pb2.AgentEvent) -> str:
    """What happened, as the field's tool words it."""
    match event.WhichOneof("notification"):
        case "agent_start":
            return f"start time: {event.agent_start.time.ToJsonString()}"
        case "policy_update":
            note = event.policy_update
            return f"labels: [{', '.join(note.labels)}], revision: {note.revision}, count: {note.rule_count}"
        case "endpoint_regenerate":
            regenerated = event.endpoint_regenerate
            error = f", error: {regenerated.error}" if regenerated.error else ""
            return f"id: {regenerated.id}, labels: [{', '.join(regenerated.labels)}]{error}"
        case "endpoint_update":
            endpoint = event.endpoint_update
            namespace = f", namespace: {endpoint.namespace}" if endpoint.namespace else ""
            return f"id: {endpoint.id}{namespace}{f', pod name: {endpoint.pod_name}' if endpoint.pod_name else ''}"
        case "ipcache_update":
            return _address(event.ipcache_update)
        case "service_upsert":
            service = event.service_upsert
            front = f"{service.frontend_address.ip}:{service.frontend_address.port}"
            backs = ", ".join(back.ip for back in service.backend_addresses)
            name = f"namespace: {service.namespace}, name: {service.name}"
            return f"id: {service.id}, {name}, type: {service.type}, frontend: {front}, backends: [{backs}]"
        case "service_delete":
            return f"id: {event.service_delete.id}"
        case _:
            return f"type: {event.unknown.type}, notification: {event.unknown.notification}"


def _address(note: flow_pb2.IPCacheNotification) -> str:
    parts = [f"cidr: {note.cidr}, identity: {note.identity}"]
    if note.HasField("old_identity"):
        parts.append(f"old identity: {note.old_identity.value}")
    if note.host_ip:
        parts.append(f"host ip: {note.host_ip}")
    if note.old_host_ip:
        parts.append(f"old host ip: {note.old_host_ip}")
    return ", ".join([*parts, f"encrypt key: {note.encrypt_key}"])
