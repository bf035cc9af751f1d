"""`ciliate status`: is everything there, and does it work?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Annotated, Any

import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.cli import connect
from services.cli.inspection import NodeOption, as_item
from services.cli.output import Column, Item, Output, OutputOption, as_json, as_yaml, render, say
from services.common.errors import CiliateError
from services.common.pb.agent.v1 import agent_pb2
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel


async def collect(servers: connect.Servers, node: str) -> dict[str, Any]:
    """Everything's state; what does not answer carries its error instead of failing the whole."""
    identity, relay, agents = await asyncio.gather(
        _or_error(_identity(servers)), _or_error(_relay(servers)), _agents(servers, node)
    )
    found: dict[str, Any] = {"sandbox": servers.sandbox, "identity": identity, "relay": relay, "nodes": agents}
    parts = [identity, relay, *agents]
    found["ok"] = all(not part.get("error") for part in parts) and all(each.get("ready") for each in agents)
    return found


async def _or_error(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    try:
        return await work
    except CiliateError as error:
        return {"error": str(error)}


async def _identity(servers: connect.Servers) -> dict[str, Any]:
    async with channel(servers.identity, servers.tls, "identity") as there:
        call = health_pb2_grpc.HealthStub(there).Check(health_pb2.HealthCheckRequest(), timeout=3.0)
        answer = await connect.calling("identity service", servers.identity, call)
    return {"status": health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status), "target": servers.identity}


async def _relay(servers: connect.Servers) -> dict[str, Any]:
    async with channel(servers.relay, servers.tls, "relay") as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        call = stub.ServerStatus(observer_pb2.ServerStatusRequest(), timeout=3.0)
        answer = await connect.calling("relay", servers.relay, call)
    return {"status": "SERVING", "target": servers.relay, **as_item(answer)}


async def _agents(servers: connect.Servers, node: str) -> list[dict[str, Any]]:
    async def one(name: str) -> dict[str, Any]:
        try:
            call = agent_pb2.StatusRequest()
            answers = await connect.each_agent(servers, name, lambda stub: stub.Status(call, timeout=3.0))
            return as_item(answers[0][1])
        except CiliateError as error:
            return {"node": name, "error": str(error)}

    return list(await asyncio.gather(*(one(name) for name, _ in connect.known_agents(servers, node))))


def _health(item: Item) -> str:
    if item.get("error"):
        return "unreachable"
    degraded = [each["name"] for each in item["components"] if each["health"] == "HEALTH_DEGRADED"]
    if degraded:
        return f"degraded: {', '.join(degraded)}"
    return "ready" if item["ready"] else "starting"


def _connections(item: Item) -> str:
    """How many, how full the table is, and which pod has most of them."""
    table = item.get("connections")
    if not table:
        return ""
    entries, size = int(table.get("entries", 0)), int(table.get("max_entries", 0))
    text = f"{entries} ({100 * entries // size if size else 0} %)"
    heaviest = table.get("heaviest") or []
    if not heaviest:
        return text
    pod = "/".join(part for part in (heaviest[0].get("namespace"), heaviest[0].get("pod")) if part)
    return f"{text}, most: {pod} {int(heaviest[0]['entries'])}"


def _policy(item: Item) -> str:
    """Revision, what of it is not in the kernel yet, and where enforcement is not the usual."""
    if item.get("error"):
        return ""
    revision, realised = int(item["policy_revision"]), int(item["policy_revision_realised"])
    parts = [f"revision {realised}" + (f", {revision} pending" if revision != realised else "")]
    if item["policy_enforcement"] != "default":
        parts.append(f"enforcement {item['policy_enforcement']}")
    if item["policy_audit"]:
        parts.append(f"audit {item['policy_audit']}")
    if item["host_policed"]:
        parts.append("host policed")
    return ", ".join(parts)


def _now(context: typer.Context, node: str) -> dict[str, Any]:
    return connect.run(collect(connect.find(context.obj), node))


WAIT_STEP = 0.5
"""Seconds between looks."""


def _lost(item: Item) -> str:
    """How many events, and where: in the kernel's ring, in the agent's buffer, before a slow reader."""
    counts = {place: int(number) for place, number in (item.get("lost_events") or {}).items() if int(number)}
    return ", ".join(f"{number} ({place.replace('_', ' ')})" for place, number in sorted(counts.items())) or "0"


NODE_COLUMNS: tuple[Column, ...] = (
    ("node", "node"),
    ("state", _health),
    ("ready after", lambda item: f"{item['ready_after_seconds']:.1f} s" if item.get("ready_after_seconds") else ""),
    ("memory", lambda item: f"{int(item['rss_bytes']) / 1e6:.0f} MB" if item.get("rss_bytes") else ""),
    ("endpoints", "endpoints"),
    ("identities", "identities"),
    ("policies", "policies"),
    ("policy", _policy),
    ("services", "services"),
    ("connections", _connections),
    ("lost events", _lost),
)


def text(found: Item) -> str:
    """The state for people: a line per service, a table of nodes, then whatever is wrong."""
    relay, identity = found["relay"], found["identity"]
    lines = [f"sandbox:   {found['sandbox']}"] if found["sandbox"] else []
    lines.append(f"identity:  {identity.get('error') or identity['status']}")
    if relay.get("error"):
        lines.append(f"relay:     {relay['error']}")
    else:
        flows = f"{relay['num_flows']}/{relay['max_flows']} flows, {relay.get('flows_rate', 0):.1f}/s"
        lines.append(f"relay:     {relay['status']}, {relay.get('num_connected_nodes', 0)} nodes, {flows}")
    lines += ["", render(found["nodes"], NODE_COLUMNS, Output.TABLE, "no agents")]
    for node in found["nodes"]:
        problems = [node["error"]] if node.get("error") else []
        problems += [
            f"{each['name']}: {each['message']}"
            for each in node.get("components", ())
            if each["health"] != "HEALTH_OK" and each["message"]
        ]
        kinds = ("object_errors", "policy_errors", "policy_pressure", "service_problems")
        problems += [problem for kind in kinds for problem in node.get(kind, ())]
        lines += [f"! {node['node']}: {problem}" for problem in problems]
    return "\n".join(lines)


async def until_ok(settings: connect.Settings, node: str, seconds: float) -> dict[str, Any]:
    """The state as soon as everything works, or as it is after `seconds`; servers may be nowhere to be found yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = await collect(connect.find(settings), node)
            if found["ok"] or time.monotonic() > deadline:
                return found
        except CiliateError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(WAIT_STEP)


def status(
    context: typer.Context,
    node: NodeOption = "",
    wait: Annotated[bool, typer.Option("--wait", help="until everything works")] = False,
    wait_duration: Annotated[float, typer.Option(help="seconds to wait at most", min=0.0)] = 300.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show whether the identity service, the relay and the agents work. Exit status 1 where one does not."""
    found = connect.run(until_ok(context.obj, node, wait_duration)) if wait else _now(context, node)
    say(as_json(found) if output is Output.JSON else as_yaml(found) if output is Output.YAML else text(found))
    if not found["ok"]:
        raise typer.Exit(1)
