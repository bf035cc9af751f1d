"""A sandbox's cgroups: one for each node, in it one for each pod, so that an agent meets its own node's sockets only.

    <cgroup2>/ciliate-<sandbox>-<random>/node1/default.frontend-0

Where there is no cgroup2 tree to write to, there are none, and agents do without balancing at sockets.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from services.common.log import get_logger

MOUNTS = Path("/proc/self/mounts")
_SECONDS = 5.0

_JOIN = 'echo 0 > "$0" && exec "$@"'
"""A process moves itself, so that its very first socket belongs there."""


def cgroup2(mounts: Path = MOUNTS) -> Path | None:
    """Where the cgroup2 tree is mounted."""
    for line in mounts.read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    return None


class Cgroups:
    """The tree of one sandbox. `note` is the file that remembers where it is, for whoever clears up."""

    def __init__(self, name: str, note: Path) -> None:
        self._name, self._note = name, note
        self._root: Path | None = None

    def create(self, nodes: Sequence[str]) -> None:
        """Make it; a machine that does not let us is no error."""
        base = cgroup2()
        if base is None:
            return
        # Random, because the tree is the machine's, while names are unique among the sandboxes of one /run only.
        root = base / f"ciliate-{self._name}-{secrets.token_hex(4)}"
        self._note.write_text(f"{root}\n", encoding="utf-8")
        try:
            for node in nodes:
                (root / node).mkdir(parents=True)
        except OSError as error:
            get_logger("cgroups").warning("no cgroups, and so no balancing at sockets", error=str(error))
            remove(self._note)
            return
        self._root = root

    def node(self, name: str) -> Path | None:
        """A node's cgroup; None where there are none."""
        return self._root / name if self._root else None

    def join(self, arguments: Sequence[str], node: str, pod: str = "") -> list[str]:
        """The command line, run in the cgroup of a node or of a pod of it."""
        if self._root is None:
            return list(arguments)
        place = self._root / node / pod if pod else self._root / node
        place.mkdir(exist_ok=True)
        return run_in(place, arguments)

    def drop(self, node: str, pod: str) -> None:
        """A pod has ended."""
        if self._root is not None:
            with contextlib.suppress(OSError):  # what still ends in it goes with the sandbox
                (self._root / node / pod).rmdir()


def run_in(place: Path, arguments: Sequence[str]) -> list[str]:
    """The command line, run in that cgroup."""
    return ["sh", "-c", _JOIN, str(place / "cgroup.procs"), *arguments]


def of_process(pid: int, mounts: Path = MOUNTS) -> Path | None:
    """The cgroup that a process is in; None where there are none, or no such process."""
    base = cgroup2(mounts)
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    return base / own.lstrip("/") if base is not None and own is not None else None


def join_process(pid: int, mounts: Path = MOUNTS) -> None:
    """Move this process to the cgroup that another one is in: what it starts belongs where that belongs."""
    place = of_process(pid, mounts)
    with contextlib.suppress(OSError):  # as where there are none
        if place is not None:
            (place / "cgroup.procs").write_text("0")


def remove(note: Path) -> None:
    """Remove the tree that a note names, and end whatever still runs in it. Safe to repeat."""
    try:
        root = Path(note.read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return
    deadline = time.monotonic() + _SECONDS
    while root.is_dir() and root.name.startswith("ciliate-"):
        with contextlib.suppress(OSError):
            (root / "cgroup.kill").write_text("1")
        for path in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        with contextlib.suppress(OSError):
            root.rmdir()
        if time.monotonic() > deadline:
            get_logger("cgroups").warning("cannot be removed", cgroup=str(root))
            return
        time.sleep(0.01)
    note.unlink(missing_ok=True)
