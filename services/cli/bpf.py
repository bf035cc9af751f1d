"""`ciliate bpf`: kernel maps as they are, read from the kernel and decoded by the agents."""

from __future__ import annotations

from typing import Annotated, Any

import grpc.aio
import typer

from services.cli import connect
from services.cli.inspection import NodeOption
from services.cli.output import Output, OutputOption, render, say
from services.common.pb.agent.v1 import agent_pb2, agent_pb2_grpc
from services.common.tls import channel

app = typer.Typer(help="Kernel maps of the datapath, decoded.", no_args_is_help=True)
_MAPS = {
    "policy": (agent_pb2.MAP_KIND_POLICY, "what each policy id allows and denies"),
    "ct": (agent_pb2.MAP_KIND_CT, "connections"),
    "ipcache": (agent_pb2.MAP_KIND_IPCACHE, "prefixes, their identity and their node"),
    "egress": (agent_pb2.MAP_KIND_EGRESS, "which pods leave the cluster by which gateway, with which address"),
    "nat": (agent_pb2.MAP_KIND_NAT, "translations at the nodes' devices"),
    "lb": (agent_pb2.MAP_KIND_LB, "Services, backends, the way back, and sockets connected to them"),
}


async def _dump(servers: connect.Servers, node: str, kind: Any, endpoint: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for name, target in connect.known_agents(servers, node):
        async with channel(target, servers.tls, "agent") as there:
            stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
            header = agent_pb2.DumpMapHeader()
            try:
                async for part in stub.DumpMap(agent_pb2.DumpMapRequest(map=kind, endpoint=endpoint)):
                    if part.HasField("header"):
                        header = part.header
                    else:
                        cells = zip(header.columns, part.row.cells, strict=True)
                        rows.append({"node": name, "map": header.map, **dict(cells)})
            except grpc.aio.AioRpcError as error:
                raise connect.explain(f"agent of {name}", target, error) from error
    return rows


def show(rows: list[dict[str, str]], output: Output) -> str:
    """One table per map (`lb` has several); everything in one list for programs."""
    if output is not Output.TABLE or not rows:
        return render(rows, (), output, "the map is empty")
    parts = []
    for name in dict.fromkeys(row["map"] for row in rows):
        chosen = [{key: value for key, value in row.items() if key != "map"} for row in rows if row["map"] == name]
        parts.append(f"{name}:\n" + render(chosen, [(key, key) for key in chosen[0]], output))
    return "\n\n".join(parts)


def _add(name: str, kind: Any, what: str) -> None:
    group = typer.Typer(help=f"The map of {what}.", no_args_is_help=True)

    def dump(
        context: typer.Context,
        node: NodeOption = "",
        endpoint: Annotated[str, typer.Option(help="only what this endpoint obeys (policy map)")] = "",
        output: OutputOption = Output.TABLE,
    ) -> None:
        say(show(connect.run(_dump(connect.find(context.obj), node, kind, endpoint)), output))

    group.command("list", help=f"List {what}.")(dump)
    app.add_typer(group, name=name)


for _name, (_kind, _what) in _MAPS.items():
    _add(_name, _kind, _what)
