"""`ciliate sysdump`: the command."""

from __future__ import annotations

import asyncio
import datetime
import platform
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer
import yaml

import services
from services.cli import connect
from services.cli.kube import Kubernetes
from services.cli.output import Column, Output, render, say
from services.cli.sysdump import machine, objects, servers
from services.cli.sysdump.collector import Bounds, Collector, Note, collect
from services.common.errors import CiliateError
from services.sandbox import state

CONFIGURATIONS = Path("/etc/ciliate")
_COLUMNS: tuple[Column, ...] = (("file", "file"), ("seconds", "seconds"), ("why", "error"))


def sysdump(
    context: typer.Context,
    output_file: Annotated[
        Path | None, typer.Option(help="archive to write; default: ciliate-sysdump-TIME.tar.gz")
    ] = None,
    flows: Annotated[int, typer.Option(help="newest flows to take", min=0, max=1_000_000)] = 10_000,
    timeout: Annotated[float, typer.Option(help="seconds for each collector", min=0.1)] = 20.0,
    max_mb: Annotated[int, typer.Option(help="megabytes of each collector", min=1)] = 16,
    kubeconfig: Annotated[str, typer.Option(envvar="KUBECONFIG", help="also ask this cluster's API server")] = "",
) -> None:
    """Collect what a maintainer needs in one archive: state, maps, flows, logs, configuration, kernel, objects.

    Secrets are left out: keys, tokens, passwords, environments, Kubernetes Secrets. What could not be collected is
    noted in the archive's index.json.
    """
    now = datetime.datetime.now(datetime.UTC)
    path = output_file or Path(f"ciliate-sysdump-{now:%Y%m%d-%H%M%S}.tar.gz")
    about: dict[str, object] = {"version": services.__version__, "time": now.isoformat(), "host": platform.node()}
    bounds = Bounds(timeout, max_mb << 20)
    notes = asyncio.run(_collect(context.obj, path, bounds, flows, kubeconfig, about))
    failed = [note for note in notes if note.error]
    if failed:
        items = [{"file": note.file, "seconds": note.seconds, "error": note.error} for note in failed]
        say(render(items, _COLUMNS, Output.TABLE) + "\n")
    size = path.stat().st_size / 1e6
    say(f"{path}: {len(notes) - len(failed)} of {len(notes)} collected, {size:.1f} MB. Look at it before you send it.")


async def _collect(
    settings: connect.Settings, path: Path, bounds: Bounds, flows: int, kubeconfig: str, about: dict[str, object]
) -> list[Note]:
    async with AsyncExitStack() as stack:
        found: list[Collector] = []
        sandbox = ""
        try:
            known = connect.find(settings)
            sandbox = known.sandbox
            found += servers.collectors(known, flows)
        except CiliateError as error:
            about["servers"] = str(error)  # without them the machine still has much to say
        found += _of_sandbox(sandbox) if sandbox else _of_machine()
        if kubeconfig:
            try:
                found += objects.from_kubernetes(await stack.enter_async_context(Kubernetes(kubeconfig)))
            except CiliateError as error:
                about["kubernetes"] = str(error)
        return await collect(found, path, bounds, about)


def _of_sandbox(name: str) -> Iterable[Collector]:
    paths = state.Paths(name)
    nodes = [machine.NodePlace(node.name, node.netns) for node in state.load(name).nodes]
    configurations = sorted(paths.root.glob("*.yaml"))
    yield from machine.collectors(nodes, sorted(paths.logs.glob("*.log")), configurations)
    yield from _metrics(configurations, {f"agent-{node.name}": node.netns for node in nodes})
    yield from objects.from_folder(paths.objects)


def _of_machine() -> Iterable[Collector]:
    configurations = sorted(CONFIGURATIONS.rglob("*.yaml")) if CONFIGURATIONS.is_dir() else []
    logs = sorted(Path("/var/log/ciliate").glob("*.log"))
    yield from machine.collectors([machine.NodePlace("node")], logs, configurations)
    yield from _metrics(configurations, {})


def _metrics(configurations: list[Path], namespaces: dict[str, str]) -> Iterable[Collector]:
    for path in configurations:
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            continue
        if isinstance(document, dict) and document.get("metrics_address"):
            yield machine.metrics(path.stem, str(document["metrics_address"]), namespaces.get(path.stem, ""))
