"""`ciliate endpoint`, `policy`: what nodes know."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from services.cli import connect
from services.cli.output import Column, Item, Output, OutputOption, cell, render, render_one, say
from services.common.errors import NotFound
from services.common.pb.agent.v1 import agent_pb2
from services.model.identity import Reserved
from services.model.labels import POD_NAMESPACE

NodeOption = Annotated[str, typer.Option("--node", help="only this node (default: every node that is known here)")]

endpoints = typer.Typer(help="Pod interfaces: their identity and policy state.", no_args_is_help=True)
policies = typer.Typer(help="Policies, and what they come to for an endpoint.", no_args_is_help=True)


def as_item(message: Message, **more: Any) -> dict[str, Any]:
    """A message as a plain mapping with every field, names as in the contract."""
    fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {**more, **fields}


def gather(
    context: typer.Context, node: str, call: Callable[[Any], Awaitable[Any]], field: str
) -> list[dict[str, Any]]:
    """The repeated `field` of every agent's answer, with the node's name in each item."""
    answers = connect.run(connect.each_agent(connect.find(context.obj), node, call))
    return [as_item(each, node=name) for name, answer in answers for each in getattr(answer, field)]


def _pod(item: Item) -> str:
    return "(host)" if item["host"] else f"{item['namespace']}/{item['pod']}"


def _enforced(item: Item) -> str:
    directions = [name for name in ("ingress", "egress") if item[f"{name}_enforced"]]
    return "+".join(directions) + (" (audit)" if item["audit"] else "") if directions else "off"


def _revision(item: Item) -> str:
    """What an endpoint obeys, and what it does not obey yet."""
    pending = int(item["policy_revision_pending"])
    return f"{item['policy_revision']}, {pending} pending" if pending else str(item["policy_revision"])


def _state(item: Item) -> str:
    if item["closed"]:
        return f"closed: {item['closed']}"
    return f"{item['state']}; {'; '.join(item['problems'])}" if item["problems"] else str(item["state"])


ENDPOINT_COLUMNS: tuple[Column, ...] = (
    ("node", "node"),
    ("id", "id"),
    ("pod", _pod),
    ("addresses", "addresses"),
    ("identity", "identity"),
    ("policy", _enforced),
    ("revision", _revision),
    ("state", _state),
)


@endpoints.command("list")
def endpoint_list(context: typer.Context, node: NodeOption = "", output: OutputOption = Output.TABLE) -> None:
    """List the pod interfaces of the nodes."""
    found = gather(context, node, lambda stub: stub.ListEndpoints(agent_pb2.ListEndpointsRequest()), "endpoints")
    say(render(found, ENDPOINT_COLUMNS, output, "no endpoints"))


EndpointArgument = Annotated[str, typer.Argument(help="number, address, [namespace/]pod, Deployment, or host (--node)")]


def first_found(
    context: typer.Context, node: str, wanted: str, call: Callable[[Any, str], Awaitable[Any]]
) -> tuple[str, Any]:
    """The answer of the first node that knows the endpoint `wanted`; `NotFound` where none does.

    The name of a Deployment stands for the first of its pods.
    """
    servers = connect.find(context.obj)
    for name, _ in connect.known_agents(servers, node):
        with contextlib.suppress(NotFound):
            return connect.run(connect.each_agent(servers, name, lambda stub: call(stub, wanted)))[0]
    found = gather(context, node, lambda stub: stub.ListEndpoints(agent_pb2.ListEndpointsRequest()), "endpoints")
    of_deployment = next((each for each in found if wanted in _owners(each)), None)
    if of_deployment is None:
        raise NotFound(f"no node has an endpoint {wanted!r}; see: ciliate endpoint list")
    first = _pod(of_deployment)
    return connect.run(connect.each_agent(servers, of_deployment["node"], lambda stub: call(stub, first)))[0]


def _owners(endpoint: Item) -> set[str]:
    """`web` and `default/web` for the pod `web-7d4f-x2x` of a Deployment."""
    owner = str(endpoint["pod"]).rsplit("-", 2)[0]
    return {owner, f"{endpoint['namespace']}/{owner}"} if owner != endpoint["pod"] else set()


@endpoints.command("get")
def endpoint_get(
    context: typer.Context, endpoint: EndpointArgument, node: NodeOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Show one pod interface."""
    name, answer = first_found(
        context, node, endpoint, lambda stub, text: stub.GetEndpoint(agent_pb2.GetEndpointRequest(endpoint=text))
    )
    say(render_one(as_item(answer.endpoint, node=name), output))


def short_labels(item: Item, field: str = "labels") -> list[str]:
    """The labels that people gave, and the namespace: tables need no more to recognise an identity."""
    found = []
    for label in item[field]:
        text = str(label).removeprefix("k8s:")
        if text.startswith(f"{POD_NAMESPACE}="):
            text = f"namespace={text.partition('=')[2]}"
        if not text.startswith("io.cilium."):
            found.append(text)
    return found


def _in_force(item: Item) -> str:
    """Whether a policy is enforced, and where it is not yet."""
    if not item["in_force"]:
        return "rejected"
    text = "older version in force" if item["error"] else "in force"
    waiting = ", ".join(str(number) for number in item["pending"])
    return f"{text}, pending on endpoints {waiting}" if waiting else text


POLICY_COLUMNS: tuple[Column, ...] = (
    ("node", "node"),
    ("kind", "kind"),
    ("namespace", "namespace"),
    ("name", "name"),
    ("ingress", "ingress_rules"),
    ("egress", "egress_rules"),
    ("endpoints", "endpoints"),
    ("revision", "revision"),
    ("state", _in_force),
    ("error", "error"),
    ("warnings", "warnings"),
)


@policies.command("list")
def policy_list(context: typer.Context, node: NodeOption = "", output: OutputOption = Output.TABLE) -> None:
    """List the policies that the nodes know, and which of their endpoints each selects."""
    servers = connect.find(context.obj)
    call = agent_pb2.ListPoliciesRequest()
    answers = connect.run(connect.each_agent(servers, node, lambda stub: stub.ListPolicies(call)))
    found = [as_item(each, node=name) for name, answer in answers for each in answer.policies]
    say(render(found, POLICY_COLUMNS, output, "no policies"))
    if output is Output.TABLE:
        for name, answer in answers:
            for line in answer.pressure:
                say(cell(f"! {name}: {line}"))


def _peer(item: Item) -> str:
    return "any" if not item["identity"] else f"{item['identity']} {' '.join(short_labels(item, 'identity_labels'))}"


def _ports(item: Item) -> str:
    bits = int(item["port_prefix"])
    if not bits:
        return str(item["protocol"])
    first = int(item["port"])
    last = first + (1 << (16 - bits)) - 1
    return f"{first if first == last else f'{first}-{last}'}/{item['protocol']}"


def _rule(item: Item) -> str:
    rule = item.get("rule") or {}
    if not rule.get("name"):
        return "the node reaches its pods" if item["identity"] == Reserved.HOST else "nothing closes this direction"
    where = f"{rule['namespace']}/" if rule["namespace"] else ""
    return f"{rule['kind']} {where}{rule['name']} {rule['direction']}[{rule['index']}]"


ENTRY_COLUMNS: tuple[Column, ...] = (
    ("direction", "direction"),
    ("peer", _peer),
    ("port", _ports),
    ("verdict", "verdict"),
    ("http", "http_rules"),
    ("rule", _rule),
)


@policies.command("get")
def policy_get(
    context: typer.Context, endpoint: EndpointArgument, node: NodeOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Show the compiled policy of one endpoint: every entry, and the rule that it comes from."""
    name, answer = first_found(
        context, node, endpoint, lambda stub, text: stub.GetPolicy(agent_pb2.GetPolicyRequest(endpoint=text))
    )
    item = as_item(answer, node=name)
    if output is not Output.TABLE:
        say(render_one(item, output))
        return
    say(f"{name} endpoint {item['endpoint']['id']} {_pod(item['endpoint'])} identity {item['endpoint']['identity']}")
    for direction in ("ingress", "egress"):
        isolating = [f"{each['kind']} {each['name']}" for each in item[f"isolating_{direction}"]]
        say(f"{direction}: " + (f"denied unless allowed, by {', '.join(isolating)}" if isolating else "open"))
    for problem in (item["endpoint"]["closed"], *item["endpoint"]["problems"]):
        if problem:
            say(cell(f"! {problem}"))
    if item["endpoint"]["audit"]:
        say("audit: what these entries refuse passes all the same, and is told")
    say("")
    say(render(item["entries"], ENTRY_COLUMNS, output, "no entries"))
