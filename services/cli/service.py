"""`ciliate service`: where Services are reached, who serves them, what is wrong."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.inspection import NodeOption, gather
from services.cli.output import Column, Item, Output, OutputOption, render, say
from services.common.errors import NotFound
from services.common.pb.agent.v1 import agent_pb2

services = typer.Typer(help="Services, their frontends and backends.", no_args_is_help=True)

_MANY = 6


def _frontends(item: Item) -> list[str]:
    """Every address and port once, whoever it is for."""
    return _few(list(dict.fromkeys(str(port["frontend"]) for port in item["ports"])))


def _backends(item: Item) -> list[str]:
    """Everybody behind it; a state is named where it is not the usual one."""
    found = dict.fromkeys(
        str(each["address"]) + ("" if each["state"] == "active" else f" ({each['state']})")
        for each in item["endpoints"]
    )
    return _few(list(found))


def _few(texts: list[str]) -> list[str]:
    return texts if len(texts) <= _MANY else [*texts[:_MANY], f"and {len(texts) - _MANY} more"]


def _problems(item: Item) -> list[str]:
    return [str(each["kind"]) for each in item["problems"]]


SERVICE_COLUMNS: tuple[Column, ...] = (
    ("node", "node"),
    ("namespace", "namespace"),
    ("name", "name"),
    ("type", "type"),
    ("frontends", _frontends),
    ("backends", _backends),
    ("problems", _problems),
)

FRONTEND_COLUMNS: tuple[Column, ...] = (
    ("node", "node"),
    ("frontend", "frontend"),
    ("kind", "kind"),
    ("for", "scope"),
    ("id", "service_id"),
    ("flags", "flags"),
    ("backends of new connections", lambda item: _few(item["backends"])),
)

ENDPOINT_COLUMNS: tuple[Column, ...] = (
    ("port", "port_name"),
    ("endpoint", "address"),
    ("state", "state"),
    ("node", "node"),
)


def _gather(context: typer.Context, node: str) -> list[dict[str, Any]]:
    return gather(context, node, lambda stub: stub.ListServices(agent_pb2.ListServicesRequest()), "services")


@services.command("list")
def service_list(context: typer.Context, node: NodeOption = "", output: OutputOption = Output.TABLE) -> None:
    """List Services as the nodes' datapath knows them, and what is wrong with them."""
    found = _gather(context, node)
    say(render(found, SERVICE_COLUMNS, output, "no services"))
    if output is Output.TABLE:
        _say_problems(found)


@services.command("get")
def service_get(
    context: typer.Context,
    service: Annotated[str, typer.Argument(help="[namespace/]name")],
    node: NodeOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one Service: every frontend with its backends, and everybody behind it."""
    namespace, _, name = service.rpartition("/")
    wanted = (namespace or "default", name)
    found = [each for each in _gather(context, node) if (each["namespace"], each["name"]) == wanted]
    if not found:
        raise NotFound(f"no node knows a Service {'/'.join(wanted)}; see: ciliate service list")
    if output is not Output.TABLE:
        say(render(found, SERVICE_COLUMNS, output, ""))
        return
    say(f"{'/'.join(wanted)} {found[0]['type']}")
    frontends = [{**port, "node": each["node"]} for each in found for port in each["ports"]]
    say(render(frontends, FRONTEND_COLUMNS, output, "no frontends"))
    say("")
    say(render(found[0]["endpoints"], ENDPOINT_COLUMNS, output, "no endpoints"))
    _say_problems(found)


def _say_problems(found: list[dict[str, Any]]) -> None:
    lines = dict.fromkeys(
        f"! {each['namespace']}/{each['name']}: {problem['text']}" for each in found for problem in each["problems"]
    )
    for line in lines:
        say(line)
