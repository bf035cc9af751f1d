"""Programs ahead of an interface's queueing discipline (tcx, Linux 6.6 and later).

A packet meets them without going through clsact's filters, which takes 90 ns. What they decide is final unless it is
TC_ACT_UNSPEC, so a filter behind one of ours is never asked. Like a filter, a program stays as long as its interface
does, whatever becomes of who put it there.

To replace one takes microseconds. To put the first one there takes a grace period of RCU, some 16 ms, in which the
network configuration of the whole machine is locked: nothing to do while somebody waits for a pod.

Sources: kernel documentation "bpf_mprog", `union bpf_attr`, `enum bpf_attach_type`. Errors are ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Collection, Iterator
from enum import IntEnum

from services.agent.datapath import syscall
from services.agent.datapath.maps import translate
from services.agent.datapath.syscall import Cmd, ProgramInfo
from services.common.errors import NotFound, Unavailable

_REPLACE, BEFORE = 1 << 2, 1 << 3
"""BPF_F_REPLACE; BPF_F_BEFORE: with nothing named, before all others."""
_MOST = 64
"""Programs on one hook (BPF_MPROG_MAX)."""
_NONE = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
"""Nothing is there; this kernel does not have it; the interface is gone."""


class Hook(IntEnum):
    """`enum bpf_attach_type`; the kernel's directions, not policy's."""

    INGRESS = 46
    EGRESS = 47


def _place(ifindex: int, hook: Hook, program: int = 0, flags: int = 0, old: int = 0) -> bytes:
    return struct.pack("IIIIIIQ", ifindex, program, hook, flags, old, 0, 0)


def programs(ifindex: int, hook: Hook) -> list[ProgramInfo]:
    """All that are on a hook, in order; none where the interface or the kernel does not have it."""
    ids = (ctypes.c_uint32 * _MOST)()
    attr = ctypes.create_string_buffer(64)
    struct.pack_into("IIIIQI", attr, 0, ifindex, hook, 0, 0, ctypes.addressof(ids), _MOST)
    try:
        syscall.bpf(Cmd.PROG_QUERY, attr)
    except OSError as error:
        if error.errno in _NONE:
            return []
        raise
    return list(_described(ids[: struct.unpack_from("I", attr, 24)[0]]))


def _described(ids: list[int]) -> Iterator[ProgramInfo]:
    for identifier in ids:
        try:
            with syscall.program_by_id(identifier) as fd:
                yield syscall.program_info(fd)
        except OSError as error:
            if error.errno != errno.ENOENT:  # it went meanwhile
                raise


@contextlib.contextmanager
def _explained(ifindex: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"program ahead of the filters of interface {ifindex}"
        if error.errno == errno.ENODEV:
            raise NotFound(f"{what}: the interface is gone") from error
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            raise Unavailable(f"{what}: this kernel has no such place (tcx, Linux 6.6)") from error
        raise translate(error, what) from error


def replace(ifindex: int, hook: Hook, program: int) -> bool:
    """Put a program (descriptor) where one of its name is, without a moment in between; False: there is none."""
    with _explained(ifindex):
        wanted = syscall.program_info(program)
        for found in programs(ifindex, hook):
            if found.id == wanted.id:
                return True
            if found.name == wanted.name:
                with syscall.program_by_id(found.id) as old:
                    syscall.bpf(Cmd.PROG_ATTACH, _place(ifindex, hook, program, _REPLACE, old))
                return True
    return False


def put(ifindex: int, hook: Hook, program: int) -> None:
    """A program before all others, in the place of one of its name if there is one. Waits: see above."""
    if not replace(ifindex, hook, program):
        with _explained(ifindex):
            syscall.bpf(Cmd.PROG_ATTACH, _place(ifindex, hook, program, BEFORE))


def remove(ifindex: int, hook: Hook, names: Collection[str]) -> list[str]:
    """Take programs away by name; which were there."""
    taken = []
    with _explained(ifindex):
        for found in programs(ifindex, hook):
            if found.name in names:
                with syscall.program_by_id(found.id) as program:
                    syscall.bpf(Cmd.PROG_DETACH, _place(ifindex, hook, program))
                taken.append(found.name)
    return taken


def main() -> None:
    """Print what stands where in this network namespace, for people: `python -m services.agent.datapath.tcx`."""
    for ifindex, name in socket.if_nameindex():
        for hook in Hook:
            for program in programs(ifindex, hook):
                print(f"{name} {hook.name.lower()}: {program.name} id {program.id}")


if __name__ == "__main__":
    main()
