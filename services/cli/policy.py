"""`ciliate policy validate`, `explain`, `simulate`, `suggest`: what policies say before they are asked by packets."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli import connect, policy_text
from services.cli.asked import request_of
from services.cli.inspection import as_item, policies
from services.cli.observe import ALL, flows, request
from services.cli.output import Output, OutputOption, as_yaml, render_one, say
from services.cli.policy_files import Checked, check
from services.cli.recorded import Recorded, distinct, observed_at
from services.cli.sandbox import read_manifests
from services.common.errors import CiliateError, Invalid, NotFound
from services.common.pb.agent.v1 import agent_pb2
from services.flows.flags import Filters
from services.model.objects import ObjectKey, PolicyObject
from services.model.verdict import Direction, Protocol
from services.policy.read import read_policy
from services.policy.suggest import suggest

app = policies
RECORDED_BYTES = 8 << 20
"""Of distinct recorded flows that one simulation replays, the newest ones; an agent has to hold them."""
FRAMING = 8
"""Bytes that a flow takes in its message beside itself."""
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv4": 1, "icmpv6": 58}
Files = Annotated[list[Path], typer.Argument(help="files or folders of manifests; - is standard input")]
SinceOption = Annotated[str, typer.Option("--since", help="how far back to look at recorded flows")]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", help="for what names none")]


@policies.command("validate")
def validate(files: Files, namespace: NamespaceOption = "default", output: OutputOption = Output.TABLE) -> None:
    """Read policy files offline and tell every mistake, with file, line and field; exit status 1 if there is any."""
    found = check(read_manifests(files), namespace=namespace)
    if output is Output.TABLE:
        for finding in found.findings:
            say(str(finding))
        say(policy_text.counted(found))
    else:
        say(render_one(policy_text.findings(found), output))
    if found.mistakes:
        raise typer.Exit(1)


@policies.command("explain")
def explain(
    context: typer.Context,
    source: Annotated[str, typer.Option("--from", help="[namespace/]pod, Deployment, address, or world, host, ...")],
    destination: Annotated[str, typer.Option("--to", help="likewise")],
    port: Annotated[str, typer.Option("--port", "-p", help="80, 53/udp; for ICMP the type: 8/icmp")],
    http: Annotated[str, typer.Option("--http", help="a request on the connection: 'GET /x'")] = "",
    method: Annotated[str, typer.Option("--method", help="the same in parts: its method ...")] = "",
    path: Annotated[str, typer.Option("--path", help="... its path with the query, as sent ...")] = "",
    host: Annotated[str, typer.Option("--host", help="... its Host ...")] = "",
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="... and others, 'Name: value'")] = None,
    node: Annotated[str, typer.Option("--node", help="ask this node's agent (default: any)")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what policy does with a connection: both directions, every rule that was considered, and why."""
    for flag, end in (("--from", source), ("--to", destination)):
        if not end:
            raise Invalid(f"{flag}: is empty; name a pod, a Deployment, an address or an entity such as world")
    number, protocol = read_port(port)
    about = request_of(http, method, path, host, header or [])
    asked = agent_pb2.Connection(
        source=agent_pb2.Peer(name=source),
        destination=agent_pb2.Peer(name=destination),
        protocol=protocol,
        port=number,
        http_method=about.method,
        http_path=about.path,
        http_host=about.host,
        http_headers=[f"{name}: {value}" for name, value in about.headers],
    )
    call = agent_pb2.ExplainPolicyRequest(connection=asked)
    item = as_item(ask(context, node, lambda stub: stub.ExplainPolicy(call)))
    say(
        policy_text.explained(item, port, str(about) if about.path else "")
        if output is Output.TABLE
        else render_one(item, output)
    )


@policies.command("simulate")
def simulate(
    context: typer.Context,
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="policies that would be applied")] = None,
    delete: Annotated[
        list[str] | None, typer.Option("--delete", help="a policy that would be deleted: kind/[namespace/]name")
    ] = None,
    since: SinceOption = "1h",
    namespace: NamespaceOption = "default",
    node: Annotated[str, typer.Option("--node", help="ask this node's agent (default: any)")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what would change: pairs and ports that flip, and recorded flows that would meet another verdict.

    Nothing is applied.
    """
    if not file and not delete:
        raise Invalid("say what to simulate: -f FILE, --delete kind/name, or both")
    found = accepted(check(read_manifests(file or []), namespace=namespace))
    servers = connect.find(context.obj)
    recorded = newest(connect.run(record(servers, since)))
    call = agent_pb2.SimulatePolicyRequest(
        documents=[document(source) for source in found.sources],
        deletions=[str(policy_key(text, namespace)) for text in delete or []],
        flows=[each.message() for each in recorded],
    )
    answer = ask(context, node, lambda stub: stub.SimulatePolicy(call))
    item = policy_text.simulation(as_item(answer), list(recorded.items()), since)
    say(policy_text.simulated(item) if output is Output.TABLE else render_one(item, output))


@policies.command("suggest")
def suggest_policy(
    context: typer.Context,
    selector: Annotated[str, typer.Option("--for", help="labels of the pods: app=web,tier=front")],
    since: SinceOption = "1h",
    name: Annotated[str, typer.Option("--name", help="of the policy (default: from the selector)")] = "",
    direction: Annotated[str, typer.Option("--direction", help="ingress, egress or both")] = "both",
    namespace: NamespaceOption = "default",
    output: Annotated[Output, typer.Option("--output", "-o", help="how to print")] = Output.YAML,
) -> None:
    """Write a least-privilege policy from recorded flows: what was let pass is allowed, nothing else."""
    labels = read_selector(selector)
    if direction not in {"both", "ingress", "egress"}:
        raise Invalid(f"--direction: {direction!r} is not known; use ingress, egress or both")
    chosen = [each for each in Direction if direction in {"both", each.name.lower()}]
    seen = observed_at(connect.run(record(connect.find(context.obj), since)), labels, namespace)
    if not seen:
        raise NotFound(
            f"no flow of the last {since} was let pass at pods with {selector} in namespace {namespace}; "
            "look with: ciliate observe --since 1h"
        )
    title = name or "-".join(["suggested", *re.sub(r"[^a-z0-9]+", "-", "-".join(labels.values()).lower()).split("-")])
    found = suggest(title.strip("-")[:63], namespace, labels, seen, f"the last {since}", chosen)
    # What we write must be what we would read.
    read_policy(PolicyObject(ObjectKey("CiliumNetworkPolicy", namespace, title), found.document))
    for what in found.left_out:
        typer.echo(f"left out: {what}", err=True)
    say(as_yaml(found.document) if output is Output.TABLE else render_one(found.document, output))


def ask(context: typer.Context, node: str, call: Any) -> Any:
    """The answer of one agent: each knows every policy, so the first that answers will do."""
    servers = connect.find(context.obj)
    known = connect.known_agents(servers, node)
    for place, (name, _) in enumerate(known):
        try:
            return connect.run(connect.each_agent(servers, name, call))[0][1]
        except (Invalid, NotFound):
            raise
        except CiliateError:
            if place == len(known) - 1:
                raise
    raise NotFound("no agent answered")


async def record(servers: connect.Servers, since: str) -> Counter[Recorded]:
    """The distinct flows that the relay has of the last period."""
    call = request(Filters((), ()), datetime.datetime.now(datetime.UTC), since=since)
    call.number = ALL
    found = [each.flow async for each in flows(servers.relay, servers, "relay", call) if each.HasField("flow")]
    return distinct(found)


def newest(recorded: Counter[Recorded]) -> dict[Recorded, int]:
    """The last ones, as many as one simulation may replay."""
    room = RECORDED_BYTES
    found: dict[Recorded, int] = {}
    for flow, count in reversed(recorded.items()):
        room -= flow.message().ByteSize() + FRAMING
        if room < 0:
            break
        found[flow] = count
    return found


def accepted(found: Checked) -> Checked:
    """The checked files, if nothing in them is wrong; raises `Invalid` with every mistake."""
    if found.mistakes:
        raise Invalid("\n".join(str(finding) for finding in found.mistakes))
    return found


def document(source: PolicyObject) -> str:
    """A policy document for the wire, with the namespace that it was read for."""
    metadata = {**source.document["metadata"], **({"namespace": source.key.namespace} if source.key.namespace else {})}
    return json.dumps({**source.document, "metadata": metadata}, default=str)


def read_port(text: str) -> tuple[int, int]:
    """(number, protocol) of `80`, `53/udp`, `8/icmp`; raises `Invalid`."""
    number, _, name = text.partition("/")
    protocol = _PROTOCOLS.get((name or "tcp").lower())
    if protocol is None:
        raise Invalid(f"--port: {name!r} is no protocol; use one of {', '.join(_PROTOCOLS)}")
    last = 255 if protocol in (Protocol.ICMP, Protocol.ICMPV6) else 65535
    if not number.isdecimal() or int(number) > last:
        raise Invalid(f"--port: {number!r} is no number from 0 to {last}; write 80 or 53/udp")
    return int(number), protocol


def read_selector(text: str) -> dict[str, str]:
    """`app=web,tier=front` as labels; raises `Invalid`."""
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if not key or not equals:
            raise Invalid(f"--for: {part!r}: write labels as key=value, with commas between them")
        found[key.removeprefix("k8s:")] = value
    return found


_SHORT = {
    "cnp": "CiliumNetworkPolicy",
    "ccnp": "CiliumClusterwideNetworkPolicy",
    "ccg": "CiliumCIDRGroup",
    "netpol": "NetworkPolicy",
    "np": "NetworkPolicy",
}


def policy_key(text: str, namespace: str) -> ObjectKey:
    """`cnp/[namespace/]name` as a key; raises `Invalid`."""
    kind, *rest = text.split("/")
    kinds = {each.lower(): each for each in _SHORT.values()}
    full = _SHORT.get(kind.lower()) or kinds.get(kind.lower())
    if full is None or not _given(rest):
        raise Invalid(f"--delete: {text!r}: write it as kind/name, kind one of {', '.join([*_SHORT, *kinds.values()])}")
    if full in ("CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup"):
        return ObjectKey(full, "", rest[-1])
    return ObjectKey(full, rest[0] if len(rest) == 2 else namespace, rest[-1])


def _given(rest: Sequence[str]) -> bool:
    return len(rest) in (1, 2) and all(rest)
