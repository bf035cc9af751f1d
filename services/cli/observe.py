"""`ciliate observe`: flows from the relay or from a file, by the Observer API, as the field's tool prints them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import grpc.aio
import typer
import yaml
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict, Parse, ParseError

from services.cli import connect, explanation, flowfile, flowtext, node_events, observe_options, output, times
from services.cli.aggregate import Groups
from services.cli.observe_options import DEFAULT_FIELDS, FORMATS, KINDS
from services.cli.time_formats import check
from services.common.errors import Invalid
from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel
from services.flows.flags import FLAGS, Filters, build

DEFAULT_LAST = 20
ALL = (1 << 64) - 1
GROUP_FORMATS = ("table", "json", "yaml")
JSON = frozenset({"json", "jsonpb"})
COLORS = {"auto": None, "always": True, "never": False}

Answers = AsyncIterator[observer_pb2.GetFlowsResponse]


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
    for flag, given in (("--last", last), ("--first", first)):
        if given > ALL:
            raise Invalid(f"{flag}: {given} is more than {ALL}; --all shows every flow")
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
        if since and found.since.ToNanoseconds() > found.until.ToNanoseconds():
            raise Invalid(f"--since: {since!r} is later than --until {until!r}: no flow is in between")
    return found


async def flows(target: str, servers: connect.Servers, role: str, call: observer_pb2.GetFlowsRequest) -> Answers:
    """Answers as they come; an error of the call is raised with who failed."""
    async with channel(target, servers.tls, role) as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        try:
            async for message in stub.GetFlows(call):
                yield message
        except grpc.aio.AioRpcError as error:
            raise connect.explain(role, target, error) from error


def lines(
    message: observer_pb2.GetFlowsResponse, style: flowtext.Style, how: str, *, explain: bool = False
) -> Iterable[str]:
    """The text for one answer; `table` is made of rows by the caller."""
    kind = message.WhichOneof("response_types")
    if how in JSON:
        bare = os.environ.get("HUBBLE_COMPAT") == "legacy-json-output" and how == "json" and kind == "flow"
        shown = message.flow if bare else message
        yield output.json_line(shown)
    elif how == "yaml":
        document = MessageToDict(message, preserving_proto_field_name=True)
        yield "---\n" + yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip("\n")
    elif how == "dict":
        pairs = (flowtext.row if kind == "flow" else flowtext.lost_row)(
            message.flow if kind == "flow" else message,  # type: ignore[arg-type]
            style,
        )
        yield "\n".join(f"{title:>11}: {value}" for title, value in pairs.items())
    elif kind == "lost_events":
        yield flowtext.lost(message, style)
    elif kind == "flow":
        yield flowtext.compact(message.flow, style)
    if explain and kind == "flow" and how in ("compact", "dict"):
        yield from explanation.lines(message.flow)


async def show_groups(answers: Answers, groups: Groups, style: flowtext.Style, how: str) -> None:
    """Count flows by what they have in common; printed when the call ends or is interrupted."""
    try:
        async for message in answers:
            if message.WhichOneof("response_types") == "flow":
                groups.add(message.flow)
            elif message.WhichOneof("response_types") == "lost_events":
                print(flowtext.lost(message, style), file=sys.stderr)
    except asyncio.CancelledError:
        pass  # a follower that is interrupted shows what it has
    items = groups.items()
    titles = [title for title in groups.titles if items]
    output.say(output.render(items, [(title, title) for title in titles], output.Output(how), "no flows"))


async def show(
    answers: Answers, style: flowtext.Style, how: str, *, explain: bool = False, silent: bool = False
) -> None:
    """Print flows until the call ends; what was lost is summed up at the end."""
    rows, lost, begun = [], 0, False
    with _told(lambda: lost):
        async for message in answers:
            kind = message.WhichOneof("response_types")
            lost += message.lost_events.num_events_lost
            if kind == "node_status":
                _say_status(message, style, how, silent=silent)
            elif how == "table" and kind in ("flow", "lost_events"):
                rows.append(flowtext.row(message.flow, style) if kind == "flow" else flowtext.lost_row(message, style))
            elif kind is not None:
                if begun and how == "dict":
                    output.say("-" * 12)
                for line in lines(message, style, how, explain=explain):
                    output.say(line)
                begun = True
    if how == "table":
        titles = list(rows[0]) if rows else []
        output.say(output.render(rows, [(title, title) for title in titles], output.Output.TABLE, "no flows"))


def _say_status(message: observer_pb2.GetFlowsResponse, style: flowtext.Style, how: str, *, silent: bool) -> None:
    text = flowtext.node_status(message, style)
    if text and not silent:
        print(next(iter(lines(message, style, how))) if how in JSON else text, file=sys.stderr)


@contextlib.contextmanager
def _told(lost: Any) -> Iterator[None]:
    """At the end, however it comes: how much of the truth is missing."""
    try:
        yield
    finally:
        if lost():
            print(f"{lost()} events were lost; see above where", file=sys.stderr)


def observe(context: typer.Context, **options: Any) -> None:
    """Show flows: who talked to whom, the verdict, and which policy decided.

    `--not` in front of a filter turns it around: `ciliate observe --not --verdict FORWARDED`.
    """
    kind, by = options["kind"], options["aggregate_by"]
    if kind not in KINDS:
        raise Invalid(f"{kind!r} cannot be observed; use one of {', '.join(KINDS)}")
    how, style = _how(options), _style(options)
    filters = _filters(options)
    if by and not any(options[name] for name in ("last", "first", "follow")):
        options["everything"] = True
    if options["input_file"] and not any(options[name] for name in ("last", "first", "everything")):
        options["everything"], options["follow"] = True, False
    names = ("last", "first", "everything", "follow", "since", "until")
    call = request(filters, datetime.datetime.now(datetime.UTC), **{name: options[name] for name in names})
    call.field_mask.paths.extend(_fields(options, how))
    if by or options["explain"]:
        call.extensions.Pack(details_pb2.WantDetails())
    if options["raw"]:
        output.say(raw_filters(filters))
    elif kind != "flows":
        connect.run(node_events.show(connect.find(context.obj), kind, call, options["node"], style, how))
    elif by:
        connect.run(show_groups(_answers(context, options, call), Groups(by.split(",")), style, how))
    else:
        explain, silent = options["explain"], options["silent"]
        connect.run(show(_answers(context, options, call), style, how, explain=explain, silent=silent))


def _answers(context: typer.Context, options: dict[str, Any], call: observer_pb2.GetFlowsRequest) -> Answers:
    if options["input_file"]:
        return flowfile.read(options["input_file"], call)
    servers = connect.find(context.obj)
    return flows(servers.relay, servers, "relay", call)


def _how(options: dict[str, Any]) -> str:
    how = "json" if options["json"] else str(options["output"])
    if how not in FORMATS:
        raise Invalid(f"--output: {how!r} is not known; use one of {', '.join(FORMATS)}")
    if options["aggregate_by"] and how not in GROUP_FORMATS:
        how = "table" if how == "compact" else how
        if how not in GROUP_FORMATS:
            raise Invalid(f"--output: groups are printed as {', '.join(GROUP_FORMATS)}")
    if how == "table" and options["follow"] and not options["aggregate_by"]:
        raise Invalid("--output: a table cannot follow; use compact")
    return how


def _style(options: dict[str, Any]) -> flowtext.Style:
    if options["color"] not in COLORS:
        raise Invalid(f"--color: {options['color']!r} is not known; use one of {', '.join(COLORS)}")
    wanted = COLORS[options["color"]]
    return flowtext.Style(
        node_names=options["node_names"],
        policy_names=options["policy_names"],
        numeric=options["numeric"] or not options["ip_translation"],
        color=sys.stdout.isatty() if wanted is None else wanted,
        time_format=check(options["time_format"]),
        debug=options["debug"],
    )


def _filters(options: dict[str, Any]) -> Filters:
    found = build({flag.name: options[flag.name.replace("-", "_")] or [] for flag in FLAGS})
    return Filters(
        (*found.allow, *_given("--allowlist", options["allowlist"])),
        (*found.deny, *_given("--denylist", options["denylist"])),
    )


def _given(flag: str, texts: Sequence[str] | None) -> Iterator[flow_pb2.FlowFilter]:
    for text in texts or ():
        if not text.lstrip().startswith("{"):
            raise Invalid(f'{flag}: {text!r} is no FlowFilter in JSON; write it as {{"source_pod": ["default/web"]}}')
        try:
            yield Parse(text, flow_pb2.FlowFilter())
        except ParseError as error:
            raise Invalid(f"{flag}: {text!r} is no FlowFilter in JSON: {error}") from error


def _fields(options: dict[str, Any], how: str) -> Sequence[str]:
    asked = [path for text in options["field_mask"] or () for path in text.split(",") if path]
    if asked and how not in JSON:
        raise Invalid("--field-mask: goes with --output json alone")
    for path in asked:
        if not FieldMask(paths=[path]).IsValidForDescriptor(flow_pb2.Flow.DESCRIPTOR):
            raise Invalid(f"--field-mask: {path!r} is no field of a flow; write them as in -o json: source.pod_name")
    return asked or (DEFAULT_FIELDS if options["default_masks"] and how not in JSON else ())


def raw_filters(filters: Filters) -> str:
    """The filters as they go over the wire."""
    text = {
        name: [output.json_line(each) for each in found]
        for name, found in (("allowlist", filters.allow), ("denylist", filters.deny))
        if found
    }
    return output.as_yaml(text)


command = observe_options.command(observe)
