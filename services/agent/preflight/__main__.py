"""`python -m services.agent.preflight`: findings as JSON; exit status 1 where the agent would not work."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys

from services.agent.preflight import conflicts, node
from services.agent.preflight.findings import Finding, Status

PROBE_SECONDS = 60.0


def tried(cgroup_root: str) -> list[Finding]:
    """What the child found; that it did not come to its end is a finding, too."""
    command = [sys.executable, "-m", "services.agent.preflight.probe", cgroup_root]
    why = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        output, status = done.stdout, done.returncode
        why = (
            (done.stderr.strip().splitlines() or [f"status {status}"])[-1]
            if status not in (0, 1) or done.stderr
            else ""
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        why = f"not done in {PROBE_SECONDS:g} s"
    found = []
    for line in output.splitlines():
        fields = json.loads(line)
        found.append(Finding(**{**fields, "status": Status(fields["status"])}))
    if why:
        found.append(Finding("kernel", "trying", Status.FAILED, why, "tell the project, with this text"))
    return found


def main(arguments: list[str]) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="ciliate-agent preflight", description=__doc__)
    parser.add_argument("--cgroup-root", default="", help="cgroup2 directory; empty = where the whole tree is mounted")
    parser.add_argument("--tunnel-port", type=int, default=8472, help="UDP port of the overlay")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        found = [Finding("node", "root", Status.FAILED, f"user {os.geteuid()}", "try: sudo ciliate preflight")]
    else:
        wants = node.Wants(tunnel_port=options.tunnel_port)
        found = [*node.probe(wants), *asyncio.run(conflicts.probe()), *tried(options.cgroup_root)]
    json.dump([finding.document() for finding in found], sys.stdout)
    return 1 if any(finding.status is Status.FAILED for finding in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
