"""Where the servers are and with which certificate to call them: flags, then environment, then a running sandbox.

In a cluster the command runs on a node (agent socket under /run/ciliate) or is told the relay's address. In a sandbox
everything is found through its state file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from services.common.errors import CiliateError, Invalid, NotFound, Unavailable
from services.common.grpc_errors import error_from_rpc
from services.common.pb.agent.v1 import agent_pb2_grpc
from services.common.targets import check_target
from services.common.tls import TlsFiles, channel
from services.sandbox import state

T = TypeVar("T")
DEFAULT_RELAY = "127.0.0.1:4245"
DEFAULT_IDENTITY = "127.0.0.1:4250"
AGENT_SOCKETS = Path("/run/ciliate")


@dataclass(frozen=True, slots=True)
class Settings:
    """What flags and environment said; empty = not said."""

    sandbox: str = ""
    relay: str = ""
    identity: str = ""
    agent: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Servers:
    """Targets to call. `agents` are (node, target) pairs."""

    relay: str
    identity: str
    agents: tuple[tuple[str, str], ...]
    tls: TlsFiles | None
    sandbox: str = ""
    history: str = ""
    """The relay's folder of flows, where it is on this machine."""


def find(settings: Settings) -> Servers:
    """The servers that the settings mean; raises `NotFound`, `Unavailable` or `Invalid` with what to do."""
    for flag, target in (("relay", settings.relay), ("identity", settings.identity), ("agent", settings.agent)):
        if target:
            check_target(f"--{flag}", target)
    found = _sandbox(settings)
    agents: tuple[tuple[str, str], ...]
    if settings.agent:
        agents = (("", settings.agent),)
    elif found:
        agents = tuple((node.name, f"unix://{node.agent_socket}") for node in found.nodes)
    else:
        # One agent's own folder on a cluster's node; a folder each where several nodes share a machine.
        sockets = [*AGENT_SOCKETS.glob("agent.sock"), *sorted(AGENT_SOCKETS.glob("*/agent.sock"))]
        agents = tuple(("" if path.parent == AGENT_SOCKETS else path.parent.name, f"unix://{path}") for path in sockets)
    return Servers(
        relay=settings.relay or (found.relay if found else DEFAULT_RELAY),
        identity=settings.identity or (found.identity if found else DEFAULT_IDENTITY),
        agents=agents,
        tls=_tls(settings, found),
        sandbox=found.name if found else "",
        history=found.history if found else "",
    )


def _sandbox(settings: Settings) -> state.SandboxState | None:
    if settings.sandbox:
        named = state.load(settings.sandbox)
        if not named.alive:
            raise Unavailable(f"sandbox {settings.sandbox!r} is not running; start it with: ciliate sandbox up")
        return named
    if settings.relay and settings.identity and settings.agent:
        return None
    try:
        living = [found for name in state.names() if (found := _load_alive(name)) is not None]
    except PermissionError as error:
        raise Invalid("only root may use the sandbox's sockets and certificates; try: sudo ciliate ...") from error
    if len(living) > 1:
        by_default = [found for found in living if found.name == state.DEFAULT_NAME]
        if not by_default:
            names = ", ".join(found.name for found in living)
            raise Invalid(f"several sandboxes are running ({names}); say which one with --sandbox NAME")
        return by_default[0]
    return living[0] if living else None


def _load_alive(name: str) -> state.SandboxState | None:
    try:
        found = state.load(name)
    except (NotFound, Invalid):
        return None
    return found if found.alive else None


def _tls(settings: Settings, found: state.SandboxState | None) -> TlsFiles | None:
    if settings.insecure:
        return None
    given = (settings.tls_ca, settings.tls_cert, settings.tls_key)
    if all(given):
        return TlsFiles(*given)
    if any(given):
        raise Invalid("--tls-ca, --tls-cert and --tls-key are all needed")
    if found is not None and found.tls_ca:
        return TlsFiles(found.tls_ca, found.tls_cert, found.tls_key)
    raise NotFound(
        "no sandbox is running here and no certificate was given: start one with `ciliate sandbox up`, "
        "or name a cluster's with --tls-ca, --tls-cert and --tls-key (--insecure for plaintext)"
    )


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work. Failed calls become errors of the tree."""
    return asyncio.run(work)


async def calling(what: str, target: str, call: Awaitable[T]) -> T:
    """Await a call; its failure is raised with who did not answer, and where."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise explain(what, target, error) from error


def explain(what: str, target: str, failed: grpc.aio.AioRpcError) -> CiliateError:
    """The error to show for a failed call: an unreachable server is said to be one."""
    error = error_from_rpc(failed)
    details = failed.details() or ""
    unreachable = (
        "failed to connect",
        "connect failed",
        "Connection refused",
        "No such file",
        "Socket closed",
        "Deadline",
    )
    if isinstance(error, Unavailable) and any(text in details for text in unreachable):
        return Unavailable(f"the {what} at {target} does not answer: is it running? ({details})")
    return error


def known_agents(servers: Servers, node: str = "") -> list[tuple[str, str]]:
    """(node, target) of every agent, or of the one of `node`; `NotFound` where there is none."""
    chosen = [(name, target) for name, target in servers.agents if node in ("", name)]
    if not chosen:
        known = ", ".join(name for name, _ in servers.agents)
        wanted = (
            f"no node {node!r} here; known: {known}"
            if known
            else f"no agent runs here (no {AGENT_SOCKETS}/*/agent.sock)"
        )
        raise NotFound(
            f"{wanted}; start a sandbox with `ciliate sandbox up`, or name a socket with --agent unix:///..."
        )
    return chosen


async def each_agent(
    servers: Servers, node: str, call: Callable[[agent_pb2_grpc.AgentServiceStub], Awaitable[T]]
) -> list[tuple[str, T]]:
    """Ask every agent (or the one of `node`) at once; returns (node, answer) pairs in node order.

    Raises `NotFound` where there is no agent to ask.
    """
    chosen = known_agents(servers, node)

    async def ask(name: str, target: str) -> tuple[str, T]:
        async with channel(target, servers.tls, "agent") as there:
            stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
            return name, await calling(f"agent of {name}" if name else "agent", target, call(stub))

    return await together([ask(name, target) for name, target in chosen])


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of work that is done at once; the first failure ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # one reason is enough to act on
    return [task.result() for task in tasks]
