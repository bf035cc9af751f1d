"""`ciliate connectivity`: the command."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.cli import connect
from services.cli.connectivity import objects, report
from services.cli.connectivity.case import Case
from services.cli.connectivity.cluster import Cluster, World
from services.cli.connectivity.layer7 import LAYER7
from services.cli.connectivity.paths import PATHS
from services.cli.connectivity.policies import POLICIES
from services.cli.connectivity.report import Result, Status
from services.cli.connectivity.runner import Plan, Runner
from services.cli.connectivity.seen import Flows
from services.cli.output import say
from services.common.errors import CiliateError, Invalid, NotFound

CASES: tuple[Case, ...] = (*PATHS, *POLICIES, *LAYER7)
app = typer.Typer(help="Whether the cluster does what it should, tried with real packets.", no_args_is_help=True)


def chosen(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases that a pattern finds and that none behind a '!' finds; `Invalid` where nothing is left."""
    try:
        keep = [re.compile(text) for text in patterns if not text.startswith("!")]
        leave = [re.compile(text[1:]) for text in patterns if text.startswith("!")]
    except re.error as error:
        raise Invalid(f"--test: {error.pattern!r} is no regular expression: {error}") from error
    found = [
        case
        for case in cases
        if (not keep or any(each.search(case.name) for each in keep))
        and not any(each.search(case.name) for each in leave)
    ]
    if not found:
        raise Invalid(f"--test: no case is left by {', '.join(patterns)}; see: ciliate connectivity test --list")
    return found


async def run_all(cluster: Cluster, plan: Plan, flows: Flows | None, seconds: float) -> tuple[list[Result], str]:
    """Run the plan; returns the results, one per case, and why it ended early ("" = it did not)."""
    runner, why = Runner(cluster, plan, flows), ""
    task = asyncio.ensure_future(runner.run())
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def stop() -> None:
        told.set()
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            why = f"--timeout: not done in {seconds:g} s"
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    except CiliateError as error:
        why = str(error)
    except BaseExceptionGroup as group:
        why = str(group.exceptions[0])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    why = why or ("interrupted" if told.is_set() else "")
    order = {case.name: index for index, case in enumerate(plan.cases)}
    done = {result.name for result in runner.results}
    left = [Result(name, Status.FAILED, problems=(f"not run: {why}",)) for name in order if name not in done]
    return sorted([*runner.results, *left], key=lambda result: order[result.name]), why


def find_cluster(servers: connect.Servers | None, kubeconfig: str, context: str, world: World | None) -> Cluster:
    """The one that runs here as a sandbox, or the one of a kubeconfig."""
    if not kubeconfig and not context and servers is not None and servers.sandbox:
        from services.cli.connectivity.in_sandbox import SandboxCluster

        return SandboxCluster(servers.sandbox)
    from services.cli.connectivity.in_kubernetes import KubernetesCluster

    return KubernetesCluster(kubeconfig, context, world)


def _servers(settings: connect.Settings) -> connect.Servers | None:
    try:
        return connect.find(settings)
    except NotFound:
        return None  # a cluster without a certificate for its relay: flows are not checked


@app.command("test")
def run_test(
    context: typer.Context,
    tests: Annotated[
        list[str] | None, typer.Option("--test", "-t", help="regular expression of names; !EXPRESSION leaves out")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="show the names of the cases; ask nobody")] = False,
    junit_file: Annotated[Path | None, typer.Option(help="write results as JUnit XML")] = None,
    timeout: Annotated[float, typer.Option(help="seconds for everything", min=1.0)] = 600.0,
    concurrency: Annotated[int, typer.Option(help="cases at once, each in a namespace of its own", min=1, max=16)] = 2,
    namespace: Annotated[str, typer.Option(help="prefix of the namespaces that are made")] = "ciliate-test",
    image: Annotated[
        str, typer.Option(help="of clients and servers: needs python3, curl, ping, getent")
    ] = objects.IMAGE,
    kubeconfig: Annotated[str, typer.Option(envvar="KUBECONFIG", help="of the cluster to test")] = "",
    kube_context: Annotated[str, typer.Option("--context", help="of the kubeconfig")] = "",
    external_address: Annotated[list[str] | None, typer.Option(help="of a web server outside of the cluster")] = None,
    external_name: Annotated[str, typer.Option(help="a name that leads to it")] = "one.one.one.one",
    external_other: Annotated[str, typer.Option(help="another name, that policies shall refuse")] = "dns.google",
    flows: Annotated[bool, typer.Option("--flows/--no-flows", help="ask the relay whether everything was seen")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="tell each case when it is done")] = False,
) -> None:
    """Create clients and servers, try every feature, remove everything. Exit status 1 on a failure."""
    cases = chosen(CASES, tests or [])
    if list_only:
        say("\n".join(case.name for case in cases))
        return
    if external_address and not external_name:
        raise Invalid("--external-name: is missing; name the server at --external-address")
    world = World(tuple(external_address), (external_name, external_other)) if external_address else None
    servers = _servers(context.obj)
    cluster = find_cluster(servers, kubeconfig, kube_context, world)
    begun = time.monotonic()

    def told(text: str) -> None:
        if verbose:
            print(f"{time.monotonic() - begun:6.1f} s  {text}", file=sys.stderr, flush=True)

    plan = Plan(cases, namespace, min(concurrency, len(cases)), image, told)
    seen = Flows(servers) if flows and servers is not None else None
    results, why = asyncio.run(run_all(cluster, plan, seen, timeout))
    seconds = time.monotonic() - begun
    if junit_file is not None:
        _write(junit_file, report.junit(results, seconds))
    Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False).print(report.table(results))
    say(f"\n{report.summary(results, seconds)}" + (f"\n{why}" if why else ""))
    if why or any(result.status is Status.FAILED for result in results):
        raise typer.Exit(1)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise Invalid(f"--junit-file: cannot write {path}: {error.strerror}") from error
