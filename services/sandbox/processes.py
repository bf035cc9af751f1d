"""Child processes of a sandbox: started in order, ended in reverse, never left behind.

Two lines of defence: the kernel ends a child when the supervisor dies (parent-death signal), and a ledger on disk
names every child by number and start time, so that the next start can end what a killed sandbox left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import Unavailable
from services.sandbox.state import NETNS_ROOT, start_time

GRACE_SECONDS = 5.0


@dataclass(slots=True)
class Child:
    """A started process. `log` holds what it wrote to standard output and error."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def tail(self, lines: int = 12) -> str:
        """The last lines of the log, for messages."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def died(self) -> Unavailable:
        """The error that says how it ended."""
        return Unavailable(f"{self.name} ended with status {self.process.returncode}; its last words:\n{self.tail()}")


class Processes:
    """Starts and ends children. `ledger` is the file that names them; `logs` the folder of their logs."""

    def __init__(self, ledger: Path, logs: Path) -> None:
        self._ledger, self._logs = ledger, logs
        self._children: list[Child] = []

    async def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        netns: str = "",
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Child:
        """Start a child, in the network namespace `netns` where one is named."""
        log = log or self._logs / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        prefix = ["setpriv", "--pdeathsig", "KILL", "--"]
        if netns:
            prefix += ["nsenter", f"--net={NETNS_ROOT / netns}", "--"]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *prefix,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                cwd=cwd,
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends children in order
            )
        child = Child(name, process, log)
        self._children.append(child)
        self.record(process.pid, name)
        return child

    def record(self, pid: int, name: str) -> None:
        """Write a process into the ledger: the next start ends it should this sandbox be killed."""
        with self._ledger.open("a", encoding="utf-8") as file:
            file.write(f"{pid} {start_time(pid) or 0} {name}\n")

    async def stop(self, *children: Child, grace: float = GRACE_SECONDS) -> None:
        """End children together: SIGTERM, and SIGKILL for those that are still there after the grace (seconds)."""
        for child in children:
            _send(child, signal.SIGTERM)
        waits = [asyncio.ensure_future(child.process.wait()) for child in children]
        if waits:
            _, late = await asyncio.wait(waits, timeout=grace)
            if late:
                for child in children:
                    _send(child, signal.SIGKILL)
                await asyncio.wait(late)
        for child in children:
            with contextlib.suppress(ValueError):
                self._children.remove(child)

    async def kill(self, child: Child) -> None:
        """End a child at once."""
        _send(child, signal.SIGKILL)
        await child.process.wait()
        with contextlib.suppress(ValueError):
            self._children.remove(child)

    async def stop_all(self) -> None:
        """End what is left, the youngest first."""
        while self._children:
            await self.stop(self._children[-1])


def _send(child: Child, number: signal.Signals) -> None:
    if child.running:
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(number)


def recorded(ledger: Path) -> list[tuple[int, int]]:
    """(pid, start time) of every process that a ledger names."""
    try:
        lines = ledger.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    words = [line.split() for line in lines]
    return [(int(each[0]), int(each[1])) for each in words if len(each) > 1 and each[0].isdigit() and each[1].isdigit()]


def end_recorded(ledger: Path) -> int:
    """Kill every process of a ledger that is still the one that was recorded; returns how many there were."""
    ended = 0
    for pid, begun in recorded(ledger):
        if start_time(pid) == begun:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                ended += 1
    return ended
