"""The child that tries things: in network and mount namespaces of its own, so that all of it ends with it.

Prints one finding per line as JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from services.agent.preflight import kernel, network
from services.agent.preflight.findings import Finding, Status

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
BPFFS = Path("/sys/fs/bpf")


def _apart() -> None:
    """Leave the machine's namespaces; a BPF file system of our own lies over the usual place. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    fresh = (b"bpf", str(BPFFS).encode(), b"bpf", 0, b"mode=0700")
    steps: tuple[Callable[[], int], ...] = (
        lambda: libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET),
        lambda: libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        lambda: libc.mount(*fresh),
    )
    for step in steps:
        if step() != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def say(finding: Finding) -> None:
    """One line, at once: what a crash comes after is told."""
    print(json.dumps(finding.document()), flush=True)


async def run(cgroup_root: str) -> None:
    """Try everything."""
    for finding in kernel.probe():
        say(finding)
    async for each in network.probe(BPFFS / "probe", cgroup_root):
        say(each)


def main() -> int:
    """Entry point of the child."""
    try:
        _apart()
    except OSError as error:
        fix = "run as root, with CAP_SYS_ADMIN"
        say(Finding("kernel", "namespaces to try things in", Status.FAILED, str(error.strerror), fix))
        return 1
    asyncio.run(run(sys.argv[1] if len(sys.argv) > 1 else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
