"""`ciliate fqdn`: which addresses are open by which DNS name."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.inspection import NodeOption, gather
from services.cli.output import Column, Item, Output, OutputOption, render, say
from services.common.pb.agent.v1 import agent_pb2

app = typer.Typer(help="DNS names and the addresses that pods have learned for them.", no_args_is_help=True)


def _left(item: Item) -> str:
    seconds = float(item["seconds_left"])
    return f"{seconds:.0f}s" if seconds else "over"


COLUMNS: tuple[Column, ...] = (
    ("node", "node"),
    ("name", "name"),
    ("address", "address"),
    ("ttl", "ttl"),
    ("left", _left),
    ("selectors", "selectors"),
    ("endpoints", "endpoints"),
)


@app.command("list")
def fqdn_list(
    context: typer.Context,
    pattern: Annotated[str, typer.Argument(help="only names that match, as in matchPattern")] = "",
    node: NodeOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List what the datapath has learned from DNS answers: names, addresses, how long, and for whom they are open."""
    request = agent_pb2.ListNamesRequest(pattern=pattern)
    found = gather(context, node, lambda stub: stub.ListNames(request), "names")
    say(render(found, COLUMNS, output, "no addresses were learned"))
