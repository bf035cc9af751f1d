"""One way to print answers: as a table for people, as JSON or YAML for programs. Rendering is pure.

A table shows chosen columns; JSON and YAML always carry everything.
"""

from __future__ import annotations

import enum
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

Item = Mapping[str, Any]


class Output(enum.StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="how to print", show_default=True)]

Column = tuple[str, str | Callable[[Item], object]]
"""(title, key or function of the item)."""


def as_json(value: object) -> str:
    """Indented JSON text, in the order of the keys as they are."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def json_line(message: Message) -> str:
    """A message on one line, without blanks, with the contract's own field names."""
    document = MessageToDict(message, preserving_proto_field_name=True)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def as_yaml(value: object) -> str:
    """YAML text, in the order of the keys as they are."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=200).rstrip("\n")


def cell(value: object) -> str:
    """A value as table text: lists with commas, nothing as a dash."""
    match value:
        case None | "" | [] | ():
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(cell(part) for part in value)
        case Mapping():
            return ", ".join(f"{key}={part}" for key, part in value.items())
        case float():
            return f"{value:.3g}"
        case _:
            # Labels, names and paths come from pods: nothing in them may steer the terminal.
            return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in str(value))


def table(items: Sequence[Item], columns: Sequence[Column]) -> Table:
    """A plain table: titles in capitals, no lines, made to be read and to be piped."""
    found = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 0, 0))
    for title, _ in columns:
        found.add_column(title.upper(), overflow="fold")
    for item in items:
        values = (item.get(what) if isinstance(what, str) else what(item) for _, what in columns)
        found.add_row(*(_plain(cell(value)) for value in values))
    return found


def _plain(text: str) -> Text:
    """Foreign text is never read as markup."""
    return Text(text)


def render(items: Sequence[Item], columns: Sequence[Column], output: Output, empty: str = "nothing found") -> str:
    """The whole text for a list of items."""
    match output:
        case Output.JSON:
            return as_json(list(items))
        case Output.YAML:
            return as_yaml([dict(item) for item in items])
        case Output.TABLE:
            if not items:
                return empty
            stream = io.StringIO()
            Console(file=stream, width=_width(), color_system=None).print(table(items, columns))
            return "\n".join(line.rstrip() for line in stream.getvalue().rstrip("\n").splitlines())


def render_one(item: Item, output: Output, columns: Sequence[Column] = ()) -> str:
    """The text for one item: `key: value` lines for people."""
    if output is Output.JSON:
        return as_json(dict(item))
    if output is Output.YAML:
        return as_yaml(dict(item))
    pairs = [(title, item.get(what) if isinstance(what, str) else what(item)) for title, what in columns]
    pairs = pairs or [(str(key).replace("_", " "), value) for key, value in item.items()]
    width = max(len(title) for title, _ in pairs) + 1
    return "\n".join(f"{title + ':':<{width}} {_indented(value, width)}" for title, value in pairs)


def _indented(value: object, width: int) -> str:
    if isinstance(value, list) and len(value) > 1:
        return f"\n{' ' * (width + 1)}".join(cell(part) for part in value)
    return cell(value)


def _width() -> int:
    """The terminal's width; pipes get lines as long as they are."""
    return Console().width if sys.stdout.isatty() else 10_000


def say(text: str) -> None:
    """Print an answer; a reader that has left (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
