"""Programs on a cgroup: Services at the socket, for everything that runs below it.

Each hook is a link pinned under `<root>/links`: an agent that comes back finds it and replaces the program in it, so
there is no moment without one; an agent that dies leaves it. Errors are ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from services.agent.datapath import syscall
from services.agent.datapath.maps import translate
from services.agent.datapath.units import SOCKET_HOOKS, Kind
from services.common.errors import CiliateError, Denied, NotFound, Unavailable

MOUNTS = Path("/proc/self/mounts")


def find_cgroup2(mounts: Path = MOUNTS) -> Path:
    """Where the cgroup2 tree is; raises `NotFound` where none is mounted."""
    for line in mounts.read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1].encode().decode("unicode_escape"))
    raise NotFound("cgroup_root: no cgroup2 file system is mounted here")


def whole_tree(mounts: Path = MOUNTS) -> Path:
    """The cgroup2 tree with everything that runs on the node; raises `NotFound` where only a part is to be seen.

    In a cgroup namespace of its own a container takes its own cgroup for the root: hooks there would meet nobody else.
    Every cgroup but the root says of which type it is.
    """
    root = find_cgroup2(mounts)
    if (root / "cgroup.type").exists():
        raise NotFound(f"cgroup_root: {root} is this container's own part; mount the node's tree, and name it here")
    return root


class SocketHooks:
    """The hooks of one node: pinned programs of `root` on the cgroup directory `cgroup`."""

    def __init__(self, root: Path, cgroup: Path, hooks: Mapping[str, Kind] = SOCKET_HOOKS) -> None:
        self._progs, self._links, self._cgroup = root / "progs", root / "links", cgroup
        self._hooks = hooks
        # Ways back first: nothing is translated that could not be translated back.
        self._order = sorted(hooks, key=lambda name: ("connect" in name or "sendmsg" in name, name))

    def attach(self) -> None:
        """Put or replace all of them. On failure those that were made by this call are taken away again.

        Raises `NotFound` (no such cgroup), `Denied`, `Unavailable` (this kernel does not have it).
        """
        made: list[Path] = []
        try:
            with _opened(self._cgroup) as directory:
                for name in self._loaded():
                    if not self._replace(name, directory):
                        made.append(self._links / name)
                        self._create(name, self._hooks[name], directory)
        except OSError as error:
            for link in made:
                link.unlink(missing_ok=True)
            raise _error(error, self._cgroup) from error

    def probe(self) -> None:
        """Whether this kernel and this cgroup can have hooks: by trying, with one that does nothing without the others.

        Raises as `attach` does.
        """
        try:
            name = self._loaded()[0]
            with _opened(self._cgroup) as directory, syscall.opened(self._progs / name) as program:
                os.close(syscall.link_create(program, directory, self._hooks[name]))
        except OSError as error:
            raise _error(error, self._cgroup) from error

    def detach(self) -> None:
        """Take all of them away; those that are not there are a success."""
        if self._links.is_dir():
            for name in reversed(self._order):
                (self._links / name).unlink(missing_ok=True)

    @property
    def attached(self) -> list[str]:
        """Names of the hooks that are in place."""
        return sorted(name for name in self._order if (self._links / name).exists())

    def _loaded(self) -> list[str]:
        found = [name for name in self._order if (self._progs / name).exists()]
        if not found:
            raise NotFound(f"no programs for sockets are pinned in {self._progs}")
        return found

    def _replace(self, name: str, directory: int) -> bool:
        """The pinned link runs the present program now; False where there is none on this cgroup."""
        pin = self._links / name
        if not pin.exists():
            return False
        with syscall.opened(pin) as link:
            info = syscall.cgroup_link_info(link)
            if (info.cgroup, info.attach) == (os.fstat(directory).st_ino, self._hooks[name].attach):
                with syscall.opened(self._progs / name) as program:
                    syscall.link_update(link, program)
                return True
        pin.unlink()  # of another cgroup, or of one that was removed
        return False

    def _create(self, name: str, kind: Kind, directory: int) -> None:
        with syscall.opened(self._progs / name) as program:
            link = syscall.link_create(program, directory, kind)
        try:
            self._links.mkdir(parents=True, exist_ok=True)
            syscall.obj_pin(link, self._links / name)
        finally:
            os.close(link)


@contextlib.contextmanager
def _opened(cgroup: Path) -> Iterator[int]:
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NotFound(f"cgroup_root: {cgroup}: {error.strerror}") from error
    try:
        yield directory
    finally:
        os.close(directory)


def _error(error: OSError, cgroup: Path) -> CiliateError:
    if error.errno == errno.EBADF:
        return NotFound(f"cgroup_root: {cgroup} is not in a cgroup2 file system")
    if error.errno == errno.EPERM:
        return Denied(
            f"cannot attach to {cgroup}: the agent needs root, and no program above it that does not allow others"
        )
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
        return Unavailable(f"this kernel has no links to cgroups: {error.strerror}")
    return translate(error, f"cgroup {cgroup}")
