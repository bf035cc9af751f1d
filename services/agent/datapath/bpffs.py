"""The BPF file system: mounted where it should be, pins replaced without a gap."""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from services.agent.datapath import syscall
from services.agent.datapath.generation import remove_marks
from services.common.errors import CiliateError, Denied, Unavailable

BPFFS = Path("/sys/fs/bpf")
_RETIRED = "_old"


def mounted(path: Path = BPFFS) -> bool:
    """True when a bpf file system is mounted at `path`."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[1] == str(path) and fields[2] == "bpf":
            return True
    return False


def ensure_bpffs(root: Path, mount_point: Path = BPFFS) -> None:
    """Mount bpffs if `root` is to be under its usual place and nobody has mounted it."""
    if mount_point not in root.parents or mounted(mount_point):
        return
    if not mount_point.is_dir():
        raise Unavailable(f"{mount_point} does not exist: this kernel has no BPF file system")
    # Agents that start at the same moment would mount over one another, and who pinned first would lose its pins.
    above = os.open(mount_point.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(above, fcntl.LOCK_EX)
        if not mounted(mount_point):
            _mount(mount_point)
    finally:
        os.close(above)


def _mount(mount_point: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", str(mount_point).encode(), b"bpf", 0, b"mode=0700"):
        error = os.strerror(ctypes.get_errno())
        raise Denied(f"cannot mount the BPF file system at {mount_point}: {error}; the agent needs root")


def main(arguments: Sequence[str]) -> int:
    """`ciliate-agent mount-bpffs`: for a container that may mount on the host, before the agent, which may not."""
    if arguments:
        print("ciliate-agent mount-bpffs takes no arguments", file=sys.stderr)
        return 2
    try:
        ensure_bpffs(BPFFS / "ciliate")
    except CiliateError as error:
        print(f"ciliate-agent: {error}", file=sys.stderr)
        return 1
    return 0


def repin(fd: int, path: Path) -> None:
    """Pin `fd` at `path`, in place of what is there, by rename: a reader finds the old object or the new one."""
    temporary = path.with_name(f"{path.name}_new")
    temporary.unlink(missing_ok=True)
    syscall.obj_pin(fd, temporary)
    temporary.replace(path)


def retire(path: Path) -> None:
    """Keep what is pinned at `path` alive under another name, until `drop_retired`.

    Each generation has a name of its own: an agent that is killed between loading and attaching leaves filters that
    still run the generation before.
    """
    number = 0
    while (kept := path.with_name(f"{path.name}{_RETIRED}{number}")).exists():
        number += 1
    path.rename(kept)


def drop_retired(folder: Path) -> None:
    """Unpin what `retire` kept in `folder`; call it when no filter runs an earlier generation any more."""
    for pin in folder.glob(f"*{_RETIRED}*"):
        pin.unlink(missing_ok=True)


def remove_pins(root: Path) -> None:
    """Unpin all of a node. Programs on cgroups end with their links, those on devices with their filters."""
    if not root.is_dir():
        return
    remove_marks(root)
    for folder in ("links", "maps", "progs"):
        for pin in (root / folder).iterdir() if (root / folder).is_dir() else ():
            pin.unlink()
        if (root / folder).is_dir():
            (root / folder).rmdir()
    root.rmdir()
