"""`ciliate preflight`: would the agent work on this node? The agent's own program tries it, this shows the findings."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated, Any

import typer

from services.cli.output import Column, Output, OutputOption, render, say
from services.common.errors import Internal

SECONDS = 120.0
_MARKS = {"ok": "ok", "warning": "WARNING", "failed": "FAILED"}
COLUMNS: tuple[Column, ...] = (
    ("area", "area"),
    ("", lambda item: _MARKS[item["status"]]),
    ("what", "name"),
    ("found", "detail"),
    ("do", lambda item: item["fix"] if item["status"] != "ok" else ""),
)


def summary(found: list[dict[str, Any]]) -> str:
    """One line: whether it would work, and how much is lost."""
    counts = {status: sum(each["status"] == status for each in found) for status in _MARKS}
    if counts["failed"]:
        return f"the agent would not work here: {counts['failed']} failed, {counts['warning']} warnings"
    lost = f", {counts['warning']} warnings" if counts["warning"] else ""
    return f"the agent would work here ({counts['ok']} ok{lost})"


def preflight(
    output: OutputOption = Output.TABLE,
    all_findings: Annotated[bool, typer.Option("--all", "-a", help="show also what is as it should be")] = False,
    cgroup_root: Annotated[str, typer.Option(help="cgroup2 directory; empty = where the whole tree is mounted")] = "",
    tunnel_port: Annotated[int, typer.Option(help="UDP port of the overlay", min=1, max=65535)] = 8472,
) -> None:
    """Try what the agent needs of this node: kernel features, settings, ports, conflicts. Leaves nothing behind.

    Exit status 1 where the agent would not work.
    """
    arguments = ["--cgroup-root", cgroup_root, "--tunnel-port", str(tunnel_port)]
    done = subprocess.run(
        [sys.executable, "-m", "services.agent.preflight", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise Internal(f"preflight ended with status {done.returncode}: {done.stderr.strip()[-400:]}") from error
    if output is Output.TABLE:
        shown = found if all_findings else [each for each in found if each["status"] != "ok"]
        say((render(shown, COLUMNS, output) + "\n\n" if shown else "") + summary(found))
    else:
        say(render(found, COLUMNS, output))
    if any(each["status"] == "failed" for each in found):
        raise typer.Exit(1)
