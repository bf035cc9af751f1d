"""What /proc and the cgroup tree know of a process that the kernel named: number, executable, container.

A process below a process namespace of its own has a number there that is not ours, and the kernel tells programs none
that is. Its cgroup lists it by ours: there it is found by its name.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from services.flows.entries import ProcessRef

PROC = Path("/proc")
MAX_CGROUPS = 16_384
SEARCH_SECONDS = 0.5
"""Between two searches for a cgroup that is not known."""
_CONTAINER = re.compile(r"[0-9a-f]{64}")


class Inspector:
    """`root`: of the cgroup tree; None where there is none to look at."""

    def __init__(self, root: Path | None, proc: Path = PROC, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._proc, self._clock = root, proc, clock
        self._cgroups: dict[int, Path] = {}
        self._searched = -SEARCH_SECONDS

    def inspect(self, pid: int, name: str, cgroup: int) -> ProcessRef:
        """What is to be known; texts are empty of a process that has ended."""
        place = self._cgroup(cgroup)
        container = _CONTAINER.findall(str(place)) if place else []
        if self._name(pid) != name:
            pid = self._among(place, name) or pid
        executable = self._executable(pid) if self._name(pid) == name else ""
        return ProcessRef(pid, name, executable, container[-1] if container else "")

    def _name(self, pid: int) -> str:
        try:
            return (self._proc / str(pid) / "comm").read_text(errors="replace").rstrip("\n")
        except OSError:
            return ""

    def _executable(self, pid: int) -> str:
        try:
            return str((self._proc / str(pid) / "exe").readlink())
        except OSError:
            return ""

    def _among(self, place: Path | None, name: str) -> int:
        """The process of a cgroup that has a name; of several, the one that was there first."""
        try:
            pids = sorted(map(int, (place / "cgroup.procs").read_text().split())) if place else []
        except OSError:
            return 0
        return next((pid for pid in pids if pid and self._name(pid) == name), 0)

    def _cgroup(self, number: int) -> Path | None:
        found = self._cgroups.get(number)
        if found is None and self._root is not None and self._clock() - self._searched >= SEARCH_SECONDS:
            self._searched = self._clock()
            self._cgroups = _tree(self._root)
            found = self._cgroups.get(number)
        return found


def _tree(root: Path) -> dict[int, Path]:
    """Cgroup ids are inode numbers."""
    found: dict[int, Path] = {}
    for folder, _, _ in os.walk(root):
        try:
            found[os.stat(folder).st_ino] = Path(folder)
        except OSError:
            continue
        if len(found) >= MAX_CGROUPS:
            break
    return found
