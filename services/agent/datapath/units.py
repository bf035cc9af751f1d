"""What the datapath is made of: one translation unit per kind of hook, and how the kernel has to load its programs.

Units share maps by name: what two headers declare alike is one map. A unit that is not there is left out; one that is
optional may be refused by the compiler or the kernel, and the rest is loaded without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path


class ProgramType(IntEnum):
    """`enum bpf_prog_type`, those in use."""

    SCHED_CLS = 3
    XDP = 6
    CGROUP_SOCK = 9
    SOCK_OPS = 13
    CGROUP_SOCK_ADDR = 18


class AttachType(IntEnum):
    """`enum bpf_attach_type`, those in use; NONE for programs whose hook says it."""

    NONE = 0
    CGROUP_SOCK_OPS = 3
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_INET4_POST_BIND = 12
    CGROUP_INET6_POST_BIND = 13
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET_SOCK_RELEASE = 34
    XDP = 37


@dataclass(frozen=True, slots=True)
class Kind:
    """How a program is loaded."""

    type: ProgramType = ProgramType.SCHED_CLS
    attach: AttachType = AttachType.NONE


TC = Kind()


@dataclass(frozen=True, slots=True)
class Unit:
    """One `.c` file below `bpf/` and what it includes."""

    entry: str
    default: Kind = TC
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """Programs that are loaded otherwise than the default."""
    optional: bool = False
    on_demand: bool = False
    """Loaded only where it is asked for."""

    def kind(self, program: str) -> Kind:
        """How one of its programs is loaded."""
        return self.kinds.get(program, self.default)


SOCKET_HOOKS: Mapping[str, Kind] = {
    "sock_connect4": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT),
    "sock_connect6": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET6_CONNECT),
    "sock_sendmsg4": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_UDP4_SENDMSG),
    "sock_sendmsg6": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_UDP6_SENDMSG),
    "sock_recvmsg4": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_UDP4_RECVMSG),
    "sock_recvmsg6": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_UDP6_RECVMSG),
    "sock_getpeername4": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_GETPEERNAME),
    "sock_getpeername6": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET6_GETPEERNAME),
    "sock_release": Kind(ProgramType.CGROUP_SOCK, AttachType.CGROUP_INET_SOCK_RELEASE),
}
"""Programs on cgroups (`bpf/sock.c`)."""

PROCESS_HOOKS: Mapping[str, Kind] = {
    "process_connect4": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT),
    "process_connect6": Kind(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET6_CONNECT),
    "process_sockops": Kind(ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS),
    "process_bind4": Kind(ProgramType.CGROUP_SOCK, AttachType.CGROUP_INET4_POST_BIND),
    "process_bind6": Kind(ProgramType.CGROUP_SOCK, AttachType.CGROUP_INET6_POST_BIND),
}
"""Likewise (`bpf/process.c`)."""

CILIATE, NAMES, XDP, SOCKET, PROCESS = "ciliate.c", "names.c", "xdp.c", "sock.c", "process.c"
WATCH = "watch.c"
UNITS: tuple[Unit, ...] = (
    Unit(CILIATE),
    Unit(NAMES),
    Unit(XDP, default=Kind(ProgramType.XDP), optional=True),
    Unit(SOCKET, kinds=SOCKET_HOOKS, optional=True),
    Unit(PROCESS, kinds=PROCESS_HOOKS, optional=True),
    Unit(WATCH, on_demand=True),
)


def present(source_dir: Path, wanted: Collection[str] = ()) -> tuple[Unit, ...]:
    """The units whose source is there; the first one always is, or its absence is an error. `wanted`: of those that are
    loaded on demand."""
    asked = [unit for unit in UNITS if not unit.on_demand or unit.entry in wanted]
    return tuple(unit for unit in asked if not unit.optional or (source_dir / unit.entry).is_file())
