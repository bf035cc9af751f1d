"""Hooks that only watch: links in front of whatever else runs on an interface (tcx), held by this process alone.

A link ends with its descriptor: however the agent ends, nothing of it stays. Needs no qdisc and no priority: the
kernel keeps the order, ours first, and each of ours hands on to the next (TC_ACT_UNSPEC, which is TCX_NEXT).
Source: kernel documentation, "bpf_mprog" and `enum bpf_attach_type`.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from services.agent.datapath import syscall
from services.agent.datapath.tcx import BEFORE, Hook
from services.common.errors import CiliateError, Denied, Internal, Unavailable

_HOOKS = ((Hook.EGRESS, "to_watched"), (Hook.INGRESS, "from_watched"))


class WatchHooks:
    """Watches interfaces of this network namespace whose names match `patterns`. `progs`: folder of pinned programs."""

    def __init__(self, progs: Path, patterns: Sequence[str]) -> None:
        self._progs, self._patterns = progs, tuple(patterns)
        self._links: dict[tuple[int, str], list[int]] = {}
        self.problems: dict[str, str] = {}
        """Interface -> why it is not watched."""

    @property
    def watched(self) -> list[str]:
        """Names of the interfaces."""
        return sorted(name for _, name in self._links)

    def follow(self) -> None:
        """Take the interfaces as they are now: new ones are watched, those that went are forgotten."""
        wanted = {(i, n) for i, n in socket.if_nameindex() if any(fnmatch.fnmatch(n, p) for p in self._patterns)}
        for gone in self._links.keys() - wanted:
            self._drop(gone)
        self.problems = {}
        for place in sorted(wanted - self._links.keys()):
            try:
                self._links[place] = self._attach(place[0])
            except OSError as error:
                if error.errno != errno.ENODEV:  # gone meanwhile
                    self.problems[place[1]] = str(_explain(error))

    def _attach(self, ifindex: int) -> list[int]:
        made: list[int] = []
        try:
            for kind, name in _HOOKS:
                with syscall.opened(self._progs / name) as program:
                    attr = struct.pack("IIIIIIQ", program, ifindex, kind, BEFORE, 0, 0, 0)
                    made.append(syscall.bpf(syscall.Cmd.LINK_CREATE, attr))
        except OSError:
            for link in made:
                os.close(link)
            raise
        return made

    def _drop(self, place: tuple[int, str]) -> None:
        for link in self._links.pop(place):
            os.close(link)

    def close(self) -> None:
        """Leave every interface as it was."""
        for place in list(self._links):
            self._drop(place)


def _explain(error: OSError) -> CiliateError:
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
        return Unavailable("this kernel cannot put programs in front of others (tcx, Linux 6.6); it cannot be watched")
    if error.errno in (errno.EPERM, errno.EACCES):
        return Denied(f"{error.strerror}; the agent needs root")
    return Internal(str(error))
