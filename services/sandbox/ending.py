"""How a pod's program is asked to end: what its manifest says about that, and whether it listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from services.sandbox.manifests import Document

DEFAULT_GRACE_SECONDS = 30.0


def pre_stop_seconds(pod: Document) -> float:
    """What a preStop hook asks for by `sleep`."""
    hook = (pod["spec"]["containers"][0].get("lifecycle") or {}).get("preStop") or {}
    return float((hook.get("sleep") or {}).get("seconds", 0))


def grace_seconds(pod: Document) -> float:
    """How long a program may take to end."""
    return float(pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS))


async def ask(pid: int, process: asyncio.subprocess.Process, number: signal.Signals, grace: float) -> None:
    """The signal to a pod's first process, and up to `grace` seconds. One that does not handle it is not waited for:
    the first process of a PID namespace is deaf to it."""
    if not pid or not _listens(pid, number):
        return
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        os.kill(pid, number)
        await asyncio.wait_for(process.wait(), grace)


def _listens(pid: int, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
