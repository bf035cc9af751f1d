"""`ciliate observe`: flows from the relay (or a node), by the Observer API, in the formats of the field's tool."""

from __future__ import annotations

import asyncio
import datetime
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Annotated, Any

import grpc.aio
import typer
import yaml
from google.protobuf.json_format import MessageToDict, MessageToJson

from services.cli import connect, flowtext, output, times
from services.cli.aggregate import KEYS, Groups
from services.common.errors import Invalid
from services.common.pb.details.v1 import details_pb2
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel
from services.flows.flags import FLAGS, Filters, build

DEFAULT_LAST = 20
ALL = (1 << 64) - 1
GROUP_FORMATS = ("table", "json", "yaml")
FORMATS = ("compact", "dict", "table", "json", "jsonpb", "yaml")


def request(
    filters: Filters,
    now: datetime.datetime,
    *,
    last: int = 0,
    first: int = 0,
    everything: bool = False,
    follow: bool = False,
    since: str = "",
    until: str = "",
) -> observer_pb2.GetFlowsRequest:
    """The call for these options; raises `Invalid` for options that exclude each other."""
    if first and (last or everything or follow):
        raise Invalid("--first: cannot be combined with --last, --all or --follow")
    if last and everything:
        raise Invalid("--last: cannot be combined with --all")
    bounded = bool(since or until)
    number = last or first
    if not number and not follow and not bounded:
        number = ALL if everything else DEFAULT_LAST
    found = observer_pb2.GetFlowsRequest(
        number=number, first=bool(first), follow=follow, whitelist=filters.allow, blacklist=filters.deny
    )
    if since:
        found.since.FromDatetime(times.point(since, "--since", now))
    if until and not follow:
        found.until.FromDatetime(times.point(until, "--until", now))
    return found


def lines(message: observer_pb2.GetFlowsResponse, style: flowtext.Style, how: str) -> Iterable[str]:
    """The text for one answer; `table` is made of rows by the caller."""
    kind = message.WhichOneof("response_types")
    if how in {"json", "jsonpb"}:
        yield MessageToJson(message, preserving_proto_field_name=True, indent=None)
    elif how == "yaml":
        document = MessageToDict(message, preserving_proto_field_name=True)
        yield "---\n" + yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip("\n")
    elif kind == "lost_events":
        yield flowtext.lost(message)
    elif kind == "flow" and how == "dict":
        pairs = flowtext.row(message.flow, style).items()
        yield "\n".join(f"{title:>11}: {value}" for title, value in pairs) + "\n" + "-" * 12
    elif kind == "flow":
        yield flowtext.compact(message.flow, style)


async def flows(
    target: str, servers: connect.Servers, role: str, call: observer_pb2.GetFlowsRequest
) -> AsyncIterator[observer_pb2.GetFlowsResponse]:
    """Answers as they come; an error of the call is raised with who failed."""
    async with channel(target, servers.tls, role) as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        try:
            async for message in stub.GetFlows(call):
                yield message
        except grpc.aio.AioRpcError as error:
            raise connect.explain(role, target, error) from error


async def show_groups(servers: connect.Servers, call: observer_pb2.GetFlowsRequest, groups: Groups, how: str) -> None:
    """Count flows by what they have in common; printed when the call ends or is interrupted."""
    call.extensions.Pack(details_pb2.WantDetails())
    try:
        async for message in flows(servers.relay, servers, "relay", call):
            if message.WhichOneof("response_types") == "flow":
                groups.add(message.flow)
            elif message.WhichOneof("response_types") == "lost_events":
                print(flowtext.lost(message), file=sys.stderr)
    except asyncio.CancelledError:
        pass  # a follower that is interrupted shows what it has
    items = groups.items()
    titles = [title for title in groups.titles if items]
    output.say(output.render(items, [(title, title) for title in titles], output.Output(how), "no flows"))


async def show(servers: connect.Servers, call: observer_pb2.GetFlowsRequest, style: flowtext.Style, how: str) -> None:
    """Print flows until the call ends."""
    rows = []
    async for message in flows(servers.relay, servers, "relay", call):
        if message.WhichOneof("response_types") == "node_status":
            if text := flowtext.node_status(message):
                print(text, file=sys.stderr)
        elif how == "table" and message.WhichOneof("response_types") == "flow":
            rows.append(flowtext.row(message.flow, style))
        else:
            for line in lines(message, style, how):
                output.say(line)
    if how == "table":
        titles = list(rows[0]) if rows else []
        output.say(output.render(rows, [(title, title) for title in titles], output.Output.TABLE, "no flows"))


def observe(context: typer.Context, **options: Any) -> None:
    """Show flows: who talked to whom, the verdict, and which policy decided.

    `--not` in front of a filter turns it around: `ciliate observe --not --verdict FORWARDED`.
    """
    how = options["output"]
    if how not in FORMATS:
        raise Invalid(f"--output: {how!r} is not known; use one of {', '.join(FORMATS)}")
    by = options["aggregate_by"]
    if by and how not in GROUP_FORMATS:
        how = "table" if how == "compact" else how
        if how not in GROUP_FORMATS:
            raise Invalid(f"--output: groups are printed as {', '.join(GROUP_FORMATS)}")
    if how == "table" and options["follow"] and not by:
        raise Invalid("--output: a table cannot follow; use compact")
    filters = build({flag.name: options[flag.name.replace("-", "_")] or [] for flag in FLAGS})
    if options["aggregate_by"] and not any(options[name] for name in ("last", "first", "follow")):
        options["everything"] = True
    names = ("last", "first", "everything", "follow", "since", "until")
    call = request(filters, datetime.datetime.now(datetime.UTC), **{name: options[name] for name in names})
    if options["raw"]:
        output.say(raw_filters(filters))
        return
    if by:
        connect.run(show_groups(connect.find(context.obj), call, Groups(by.split(",")), how))
        return
    style = flowtext.Style(
        node_names=options["node_names"],
        policy_names=options["policy_names"],
        numeric=options["numeric"],
        color=sys.stdout.isatty(),
    )
    connect.run(show(connect.find(context.obj), call, style, how))


def raw_filters(filters: Filters) -> str:
    """The filters as they go over the wire."""
    text = {
        name: [MessageToJson(each, preserving_proto_field_name=True, indent=None) for each in found]
        for name, found in (("allowlist", filters.allow), ("denylist", filters.deny))
        if found
    }
    return output.as_yaml(text)


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "last": (Annotated[int, typer.Option("--last", help="the newest N flows (20 when nothing else is said)")], 0),
    "first": (Annotated[int, typer.Option("--first", help="the oldest N flows")], 0),
    "everything": (Annotated[bool, typer.Option("--all", help="every flow that is stored")], False),
    "follow": (Annotated[bool, typer.Option("--follow", "-f", help="go on as flows come")], False),
    "since": (Annotated[str, typer.Option("--since", help="from then on: 5m, 2026-11-23T05:00:00Z")], ""),
    "until": (Annotated[str, typer.Option("--until", help="up to then")], ""),
    "output": (Annotated[str, typer.Option("--output", "-o", help=", ".join(FORMATS))], "compact"),
    "node_names": (Annotated[bool, typer.Option("--print-node-name", help="show which node saw it")], False),
    "policy_names": (
        Annotated[bool, typer.Option("--print-policy-names/--no-policy-names", help="show which policies decided")],
        True,
    ),
    "numeric": (Annotated[bool, typer.Option("--numeric", help="addresses instead of names")], False),
    "aggregate_by": (
        Annotated[
            str,
            typer.Option(
                "--aggregate-by", help=f"count flows by a list of: {', '.join(KEYS)}; every one unless --last"
            ),
        ],
        "",
    ),
    "raw": (Annotated[bool, typer.Option("--print-raw-filters", help="show the filters; ask nobody")], False),
}


def command() -> Callable[..., None]:
    """`observe` with its signature made of the table of flags: typer reads signatures."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for name, (annotation, default) in _OPTIONS.items():
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    for flag in FLAGS:
        spellings = [f"--{flag.name}", *([f"-{flag.short}"] if flag.short else [])]
        annotation = Annotated[list[str] | None, typer.Option(*spellings, help=flag.help, rich_help_panel="Filters")]
        parameters.append(inspect.Parameter(flag.name.replace("-", "_"), keyword, default=None, annotation=annotation))

    def wrapper(context: typer.Context, **options: Any) -> None:
        observe(context, **options)

    wrapper.__doc__ = observe.__doc__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper
