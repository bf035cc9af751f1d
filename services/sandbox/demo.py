"""`./dev demo [l7|flows]`: a sandbox of two nodes, an example, every check, the last flows; leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.common.log import configure
from services.common.runner import run
from services.sandbox import checks, checks_flows, checks_l7, netns, state
from services.sandbox.checks import Check, Result, example
from services.sandbox.processes import recorded
from services.sandbox.scenario import Scenario
from services.sandbox.scenario_flows import ScenarioFlows
from services.sandbox.scenario_l7 import ScenarioL7
from services.sandbox.supervisor import Sandbox


@dataclass(frozen=True, slots=True)
class Show:
    """What is shown: an example of deploy/examples, its checks, and which flows people get to see at the end."""

    example: str
    checks: tuple[Check, ...]
    scenario: Callable[[Sandbox], Runs]
    observe: str


class Runs(Protocol):
    """Runs checks."""

    async def run(self) -> list[Result]:
        """All of them, in their declared order."""


SHOWS = {
    "": Show("my-webapp", checks.CHECKS, Scenario, "observe --last 6 --type l7 --type drop --type policy-verdict"),
    "flows": Show(
        "my-webapp", checks_flows.CHECKS, ScenarioFlows, "observe --aggregate-by source,destination,verdict --last 1000"
    ),
    "l7": Show(checks_l7.EXAMPLE, checks_l7.CHECKS, ScenarioL7, "observe --last 12 --type l7"),
}
LEFTOVERS = Check("afterwards", "left behind on the machine", "nothing")


async def demonstrate(console: Console, name: str, show: Show = SHOWS[""]) -> list[Result]:
    """Bring a sandbox up, run everything against it, take it down; returns what was found."""
    started = time.monotonic()

    def progress(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/dim]  {step}", highlight=False)

    paths = state.Paths(name)
    async with Sandbox(name, progress=progress) as sandbox:
        progress(f"applying deploy/examples/{show.example}")
        for message in sandbox.apply(example(show.example)):
            console.print(f"         {message}", style="dim", highlight=False, markup=False)
        await sandbox.wait_ready(30.0)
        progress("checks")
        results = await show.scenario(sandbox).run()
        progress("done; taking the sandbox down")
        flows = await last_flows(name, show.observe)
        children = recorded(paths.ledger)
    results.append(leftovers(paths, children))
    console.print(table(results))
    console.print(f"\nThe last flows (ciliate {show.observe}):", style="bold", highlight=False)
    print(flows)
    return results


async def last_flows(name: str, observe: str) -> str:
    """What `ciliate observe` prints: the relay's answer over the Observer API."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "--sandbox", name, *observe.split()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return output.decode(errors="replace").rstrip()


def leftovers(paths: state.Paths, children: Sequence[tuple[int, int]]) -> Result:
    """Namespaces, pins, files and processes that a sandbox should have taken along."""
    found = netns.existing(paths.netns_prefix)
    found += [str(path) for path in (paths.root, paths.bpffs) if path.exists()]
    found += [f"process {pid}" for pid, begun in children if state.start_time(pid) == begun]
    return Result(LEFTOVERS, ", ".join(found) or "nothing", not found)


def table(results: Sequence[Result]) -> Table:
    """check / expected / got."""
    found = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", "check", "expected", "got"):
        found.add_column(title, overflow="fold")
    section = ""
    for result in results:
        if result.check.section != section:
            section = result.check.section
            found.add_row("", Text(section, style="bold cyan"), "", "")
        mark = Text("ok", style="green") if result.ok else Text("NO", style="bold red")
        got = Text(result.got, style="" if result.ok else "red")
        found.add_row(mark, Text(f"  {result.check.name}"), Text(result.check.expected), got)
    return found


def main() -> int:
    """Exit status 0 only when every check passed."""
    configure("ciliate-demo", "warning", json=False)
    if os.geteuid() != 0:
        print("error: the demo needs root: it makes network namespaces and loads eBPF programs", file=sys.stderr)
        return 1
    show = SHOWS.get(" ".join(sys.argv[1:]))
    if show is None:
        print(
            f"error: no demo of that name: {' '.join(sys.argv[1:])}; there is: ./dev demo, "
            "./dev demo l7, ./dev demo flows",
            file=sys.stderr,
        )
        return 2
    console = Console(width=None if sys.stdout.isatty() else 160)
    results: list[Result] = []

    async def work() -> None:
        results.extend(await demonstrate(console, f"demo-{os.getpid()}", show))

    status = run(work())
    passed = sum(result.ok for result in results)
    if not results:
        return status or 130  # an error, or told to stop
    print(f"demo: {passed} of {len(results)} checks passed")
    return 0 if passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
