"""`ciliate egress`: egress gateway policies as each node sees them."""

from __future__ import annotations

import typer

from services.cli.inspection import NodeOption, gather
from services.cli.output import Column, Output, OutputOption, render, say
from services.common.pb.agent.v1 import agent_pb2

app = typer.Typer(help="Egress gateways: pods that leave the cluster by chosen nodes.", no_args_is_help=True)

COLUMNS: tuple[Column, ...] = (
    ("node", "node"),
    ("policy", "name"),
    ("pods", "pods"),
    ("gateways", "gateways"),
    ("address here", "address"),
    ("problems", "problems"),
)


@app.command("list")
def egress_list(context: typer.Context, node: NodeOption = "", output: OutputOption = Output.TABLE) -> None:
    """List egress gateway policies: pods, gateway nodes, the address on those, and what is wrong."""
    request = agent_pb2.ListEgressGatewaysRequest()
    found = gather(context, node, lambda stub: stub.ListEgressGateways(request), "gateways")
    say(render(found, COLUMNS, output, "no egress gateway policies"))
