"""The flags of `ciliate observe`, those of the field's tool among them, and a command with such a signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from services.cli import time_formats
from services.cli.aggregate import KEYS
from services.flows.flags import FLAGS

FORMATS = ("compact", "dict", "table", "json", "jsonpb", "yaml")
KINDS = ("flows", "agent-events", "debug-events")
DEFAULT_FIELDS = (
    "time",
    "verdict",
    "ethernet",
    "IP",
    "l4",
    "source.identity",
    "source.namespace",
    "source.pod_name",
    "destination.identity",
    "destination.namespace",
    "destination.pod_name",
    "Type",
    "node_name",
    "l7",
    "event_type",
    "source_service",
    "destination_service",
    "is_reply",
    "Summary",
    "ip_trace_id",
    "source_names",
    "destination_names",
    "traffic_direction",
    "policy_match_type",
    "auth_type",
    "drop_reason_desc",
    "sock_xlate_point",
    "egress_allowed_by",
    "ingress_allowed_by",
    "egress_denied_by",
    "ingress_denied_by",
    "extensions",
)
"""What the text formats show."""


def _flag(spelling: str, help_text: str, *more: str) -> Any:
    return Annotated[bool, typer.Option(spelling, *more, help=help_text)]


def _text(spelling: str, help_text: str, *more: str) -> Any:
    return Annotated[str, typer.Option(spelling, *more, help=help_text)]


def _number(spelling: str, help_text: str) -> Any:
    return Annotated[int, typer.Option(spelling, min=0, help=help_text)]


def _texts(spelling: str, help_text: str) -> Any:
    return Annotated[list[str] | None, typer.Option(spelling, help=help_text)]


OPTIONS: dict[str, tuple[Any, Any]] = {
    "kind": (Annotated[str, typer.Argument(help=" | ".join(KINDS))], "flows"),
    "last": (_number("--last", "the newest N flows (20 when nothing else is said)"), 0),
    "first": (_number("--first", "the oldest N flows"), 0),
    "everything": (_flag("--all", "every flow that is stored"), False),
    "follow": (_flag("--follow", "go on as flows come, and tell what was lost", "-f"), False),
    "since": (_text("--since", "from then on: 5m, 2026-11-23T05:00:00Z"), ""),
    "until": (_text("--until", "up to then"), ""),
    "output": (_text("--output", ", ".join(FORMATS), "-o"), "compact"),
    "json": (_flag("--json", "the same as -o json", "-j"), False),
    "node_names": (_flag("--print-node-name", "show which node saw it"), False),
    "policy_names": (_flag("--print-policy-names/--no-print-policy-names", "show which policies decided"), True),
    "explain": (_flag("--explain", "below each flow: the rule that decided, or the nearest one; its process"), False),
    "time_format": (_text("--time-format", ", ".join(time_formats.FORMATS)), time_formats.STAMP),
    "numeric": (_flag("--numeric", "addresses instead of names"), False),
    "ip_translation": (_flag("--ip-translation/--no-ip-translation", "names instead of addresses"), True),
    "color": (_text("--color", "auto, always or never"), "auto"),
    "silent": (_flag("--silent-errors", "say nothing of nodes that are missing", "-s"), False),
    "debug": (_flag("--debug", "say also which nodes answer", "-D"), False),
    "aggregate_by": (
        _text("--aggregate-by", f"count flows by a list of: {', '.join(KEYS)}; every one unless --last"),
        "",
    ),
    "input_file": (_text("--input-file", "read flows from this file (JSON lines, - = standard input)"), ""),
    "node": (_text("--node", "agent-events, debug-events: of this node alone"), ""),
    "field_mask": (_texts("--field-mask", "with -o json: these fields of a flow alone, a,b.c"), None),
    "default_masks": (
        _flag("--use-default-field-masks/--no-use-default-field-masks", "ask only for fields that are shown"),
        False,
    ),
    "allowlist": (_texts("--allowlist", "a FlowFilter as JSON: also what it matches"), None),
    "denylist": (_texts("--denylist", "a FlowFilter as JSON: nothing that it matches"), None),
    "raw": (_flag("--print-raw-filters", "show the filters; ask nobody"), False),
}
SWITCHES = {
    "--print-node-name": "",
    "--print-policy-names": "--no-print-policy-names",
    "--ip-translation": "--no-ip-translation",
    "--use-default-field-masks": "--no-use-default-field-masks",
    "--follow": "",
    "--all": "",
    "--numeric": "",
}
"""Switch -> what turns it off; the field's tool lets people write --switch=false."""


def command(run: Callable[..., None]) -> Callable[..., None]:
    """`run` with a signature made of the tables of flags: typer reads signatures."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for name, (annotation, default) in OPTIONS.items():
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    for flag in FLAGS:
        spellings = [f"--{flag.name}", *([f"-{flag.short}"] if flag.short else [])]
        annotation = Annotated[list[str] | None, typer.Option(*spellings, help=flag.help, rich_help_panel="Filters")]
        parameters.append(inspect.Parameter(flag.name.replace("-", "_"), keyword, default=None, annotation=annotation))

    def wrapper(context: typer.Context, **options: Any) -> None:
        run(context, **options)

    wrapper.__doc__ = run.__doc__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper
