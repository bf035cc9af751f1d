"""bpf(2), as thin as possible: attributes packed by hand, errors as OSError.

Everything is written for the current kernel's `union bpf_attr`; unused tail bytes are zero, which every version
accepts. Units: file descriptors are owned by the caller.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from services.agent.datapath.units import TC, Kind

_libc = ctypes.CDLL(None, use_errno=True)
_SYSCALLS = {"x86_64": 321, "aarch64": 280}
_NUMBER = _SYSCALLS[os.uname().machine]
_ATTR_SIZE = 160


class Cmd(IntEnum):
    """`enum bpf_cmd`."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29


class MapType(IntEnum):
    """`enum bpf_map_type`, those in use."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    RINGBUF = 27


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def bpf(cmd: Cmd, attr: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """One call. Returns its result (a descriptor or 0); raises OSError."""
    buffer = ctypes.create_string_buffer(attr, _ATTR_SIZE) if isinstance(attr, bytes) else attr
    result: int = _libc.syscall(_NUMBER, int(cmd), buffer, len(buffer))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf {cmd.name}: {os.strerror(number)}")
    return result


def address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Where a buffer is; it must stay referenced for the call."""
    return ctypes.addressof(buffer)


def map_create(kind: int, key_size: int, value_size: int, max_entries: int, flags: int, name: str) -> int:
    """Create a map and return its descriptor."""
    attr = struct.pack("IIIIIII16s", kind, key_size, value_size, max_entries, flags, 0, 0, name[:15].encode())
    return bpf(Cmd.MAP_CREATE, attr)


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Write one entry."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    bpf(Cmd.MAP_UPDATE_ELEM, struct.pack("IIQQQ", fd, 0, address(k), address(v), 0))


def prog_load(name: str, instructions: bytes, kind: Kind = TC, log_size: int = 0) -> int:
    """Load a program. Raises OSError; with `log_size` its text ends with the verifier's last words."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"Dual BSD/GPL")
    log = ctypes.create_string_buffer(max(log_size, 1))
    attr = struct.pack(
        "IIQQIIQII16sII",
        kind.type,
        len(instructions) // 8,
        address(code),
        address(licence),
        1 if log_size else 0,
        log_size,
        address(log) if log_size else 0,
        0,
        0,
        name[:15].encode(),
        0,
        kind.attach,
    )
    try:
        return bpf(Cmd.PROG_LOAD, attr)
    except OSError as error:
        if not log_size:
            raise
        tail = log.value[-4000:].decode(errors="replace")
        raise OSError(error.errno, f"verifier refused {name}: {os.strerror(error.errno or 0)}\n{tail}") from error


def obj_pin(fd: int, path: Path) -> None:
    """Pin a map or program under a new name."""
    name = ctypes.create_string_buffer(str(path).encode())
    bpf(Cmd.OBJ_PIN, struct.pack("QII", address(name), fd, 0))


@contextlib.contextmanager
def opened(pin: Path) -> Iterator[int]:
    """A pinned object's descriptor, closed afterwards. Raises OSError."""
    fd = obj_get(pin)
    try:
        yield fd
    finally:
        os.close(fd)


def obj_get(path: Path) -> int:
    """Open a pin."""
    name = ctypes.create_string_buffer(str(path).encode())
    return bpf(Cmd.OBJ_GET, struct.pack("QII", address(name), 0, 0))


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program: its number and its name (15 characters)."""

    id: int
    name: str


def program_info(fd: int) -> ProgramInfo:
    """Ask the kernel what a program is."""
    out = ctypes.create_string_buffer(128)
    bpf(Cmd.OBJ_GET_INFO_BY_FD, struct.pack("IIQ", fd, len(out), address(out)))
    return ProgramInfo(struct.unpack_from("I", out, 4)[0], out.raw[64:80].partition(b"\0")[0].decode(errors="replace"))


@contextlib.contextmanager
def program_by_id(identifier: int) -> Iterator[int]:
    """A program's descriptor by its number, closed afterwards. Raises OSError (ENOENT: it is gone)."""
    fd = bpf(Cmd.PROG_GET_FD_BY_ID, struct.pack("III", identifier, 0, 0))
    try:
        yield fd
    finally:
        os.close(fd)


def link_create(program: int, target: int, kind: Kind, flags: int = 0) -> int:
    """Attach a program to a cgroup (or device); returns the link, which holds it there while it is open or pinned."""
    return bpf(Cmd.LINK_CREATE, struct.pack("IIII", program, target, kind.attach, flags))


def link_update(link: int, program: int) -> None:
    """Replace a link's program: no moment without one."""
    bpf(Cmd.LINK_UPDATE, struct.pack("IIII", link, program, 0, 0))


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a link. `cgroup`: inode number of the directory, 0 when that is gone."""

    program: int
    cgroup: int
    attach: int


def cgroup_link_info(fd: int) -> LinkInfo:
    """Ask the kernel where a cgroup link is."""
    out = ctypes.create_string_buffer(128)
    bpf(Cmd.OBJ_GET_INFO_BY_FD, struct.pack("IIQ", fd, len(out), address(out)))
    _, _, program, cgroup, attach = struct.unpack_from("IIIxxxxQI", out)
    return LinkInfo(program, cgroup, attach)


def map_info(fd: int) -> MapInfo:
    """Ask the kernel what a map is."""
    out = ctypes.create_string_buffer(128)
    bpf(Cmd.OBJ_GET_INFO_BY_FD, struct.pack("IIQ", fd, len(out), address(out)))
    kind, identifier, key, value, entries, flags = struct.unpack_from("IIIIII", out)
    return MapInfo(kind, identifier, key, value, entries, flags)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What BPF_PROG_TEST_RUN says: the program's return value, the packet it left, mean ns of one run."""

    verdict: int
    packet: bytes
    context: bytes
    duration_ns: int


def prog_test_run(fd: int, packet: bytes, context: bytes = b"", repeat: int = 1) -> RunResult:
    """Run a tc or XDP program over a packet (with its Ethernet header). `context`: `struct __sk_buff`, `struct xdp_md`
    or empty."""
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(len(packet) + 512)
    context_in = ctypes.create_string_buffer(context, max(len(context), 1))
    context_out = ctypes.create_string_buffer(max(len(context), 1))
    attr = ctypes.create_string_buffer(_ATTR_SIZE)
    struct.pack_into(
        "IIIIQQIIIIQQ",
        attr,
        0,
        fd,
        0,
        len(packet),
        len(data_out),
        address(data_in),
        address(data_out),
        repeat,
        0,
        len(context),
        len(context),
        address(context_in) if context else 0,
        address(context_out) if context else 0,
    )
    bpf(Cmd.PROG_TEST_RUN, attr)
    _, verdict, _, size_out, _, _, _, duration, _, size_context = struct.unpack_from("IIIIQQIIII", attr)
    return RunResult(verdict, data_out.raw[:size_out], context_out.raw[: size_context if context else 0], duration)
