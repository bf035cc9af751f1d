"""`ciliate identity`: the cluster's identities, and what the labels that make them are good for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from services.cli import connect
from services.cli.inspection import as_item, short_labels
from services.cli.label_report import Report, exclusion, report
from services.cli.output import Column, Item, Output, OutputOption, cell, render, render_one, say
from services.common.errors import CiliateError, Invalid
from services.common.pb.agent.v1 import agent_pb2
from services.common.pb.identity.v1 import identity_pb2, identity_pb2_grpc
from services.common.tls import channel
from services.model.identity import is_cluster

identities = typer.Typer(help="Security identities: numbers for label sets.", no_args_is_help=True)

IDENTITY_COLUMNS: tuple[Column, ...] = (("id", "id"), ("labels", short_labels))
POLICIES_SHOWN = 3
PATTERNS_SHOWN = 5


@identities.command("list")
def identity_list(
    context: typer.Context,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="only those with this label")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the cluster's identities."""
    found = connect.run(_identities(connect.find(context.obj), label or []))
    say(render(found, IDENTITY_COLUMNS, output, "no identities"))


async def _identities(servers: connect.Servers, labels: list[str]) -> list[dict[str, Any]]:
    async def collect(stub: Any) -> list[dict[str, Any]]:
        return [as_item(each) async for each in stub.List(identity_pb2.ListRequest(labels=labels))]

    async with channel(servers.identity, servers.tls, "identity") as there:
        stub = identity_pb2_grpc.IdentityServiceStub(there)  # type: ignore[no-untyped-call]
        found = await connect.calling("identity service", servers.identity, collect(stub))
    return sorted(found, key=lambda item: int(item["id"]))


@identities.command("get")
def identity_get(
    context: typer.Context,
    identity: Annotated[str, typer.Argument(help="its number")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one identity and the nodes that use it."""
    if not identity.isdecimal() or len(identity) > 10 or int(identity) >= 1 << 32:
        raise Invalid(f"identity: {identity!r} is no number below 2**32; find it with: ciliate identity list")
    say(render_one(connect.run(_identity(connect.find(context.obj), int(identity))), output))


async def _identity(servers: connect.Servers, number: int) -> dict[str, Any]:
    async with channel(servers.identity, servers.tls, "identity") as there:
        stub = identity_pb2_grpc.IdentityServiceStub(there)  # type: ignore[no-untyped-call]
        call = stub.Get(identity_pb2.GetRequest(id=number))
        answer = await connect.calling("identity service", servers.identity, call)
    return {**as_item(answer.identity), "referenced_by": list(answer.referenced_by)}


@identities.command("labels")
def identity_labels(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Report label cardinality: which key makes how many identities, and which keys no policy uses."""
    servers = connect.find(context.obj)
    item = connect.run(_labels(servers))
    say(labels_text(item) if output is Output.TABLE else render_one(item, output))


async def _labels(servers: connect.Servers) -> dict[str, Any]:
    found, (used, silent) = await asyncio.gather(_identities(servers, []), _used_keys(servers))
    sets = [each["labels"] for each in found if is_cluster(int(each["id"]))]
    return labels_item(report(sets, used), silent)


async def _used_keys(servers: connect.Servers) -> tuple[dict[str, set[str]], list[str]]:
    """(policy -> keys that it uses, nodes that did not answer). Every agent knows all policies: one answer will do, and
    more of them cover for one that is behind. Raises what the last one said where none answers."""

    async def one(name: str) -> list[agent_pb2.Policy] | CiliateError:
        call = agent_pb2.ListPoliciesRequest()
        try:
            answers = await connect.each_agent(servers, name, lambda stub: stub.ListPolicies(call, timeout=10.0))
        except CiliateError as error:
            return error
        return list(answers[0][1].policies)

    names = [name for name, _ in connect.known_agents(servers)]
    answers = dict(zip(names, await asyncio.gather(*(one(name) for name in names)), strict=True))
    errors = {name: answer for name, answer in answers.items() if isinstance(answer, CiliateError)}
    if len(errors) == len(answers):
        raise next(iter(errors.values()))
    used: dict[str, set[str]] = {}
    for answer in answers.values():
        for policy in answer if isinstance(answer, list) else ():
            where = f"{policy.namespace}/" if policy.namespace else ""
            used.setdefault(f"{policy.kind} {where}{policy.name}", set()).update(policy.label_keys)
    return used, sorted(errors)


def labels_item(found: Report, silent: Iterable[str] = ()) -> dict[str, Any]:
    """The report for programs."""
    return {
        "identities": found.total,
        "keys": [each.as_item(found.total) for each in found.keys],
        "unused_keys": list(found.unused),
        "without_unused": found.without_unused,
        "not_asked": list(silent),
    }


def _policies(item: Item) -> str:
    names = item["policies"]
    more = f" and {len(names) - POLICIES_SHOWN} more" if len(names) > POLICIES_SHOWN else ""
    return ", ".join(names[:POLICIES_SHOWN]) + more if names else "no policy"


LABEL_COLUMNS: tuple[Column, ...] = (
    ("key", "key"),
    ("identities", "identities"),
    ("values", "values"),
    ("left without", "without"),
    ("used by", _policies),
)


def labels_text(item: Item) -> str:
    """The report for people: a row per key, then what could go."""
    lines = [render(item["keys"], LABEL_COLUMNS, Output.TABLE, "no identity has labels of pods"), ""]
    total, rest = int(item["identities"]), int(item["without_unused"])
    unused = item["unused_keys"]
    lines.append(f"{total} identities; without the {len(unused)} keys that no policy uses: {rest}")
    costly = [each["key"] for each in item["keys"] if each["key"] in set(unused) and each["saved"]]
    if costly:
        patterns = ", ".join(f"'{exclusion(key)}'" for key in costly[:PATTERNS_SHOWN])
        lines.append(f"to leave keys out (flows lose them as well), agents' identity_label_patterns: {patterns}")
    nobody = [each["key"] for each in item["keys"] if not each["identities"]]
    if nobody:
        lines.append(f"policies ask for keys that no identity has: {', '.join(nobody)}")
    lines += [f"! node {name} did not answer" for name in item["not_asked"]]
    return "\n".join(cell(line) if line and "\n" not in line else line for line in lines)
