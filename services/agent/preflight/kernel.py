"""eBPF by trying: maps are made, tiny programs are loaded, by the calls that the loader uses. Descriptors only.

Helpers are found as bpftool finds them: a program that calls one without arguments is refused for its arguments where
the helper is known, and for the helper where it is not.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from services.agent.datapath import syscall
from services.agent.datapath.syscall import MapType
from services.agent.datapath.units import SOCKET_HOOKS, TC, AttachType, Kind, ProgramType
from services.agent.preflight.findings import Finding, judged

AREA = "kernel"
BTF = Path("/sys/kernel/btf/vmlinux")
_BTF_MAGIC = 0xEB9F
_NO_PREALLOC = 1
_XDP = Kind(ProgramType.XDP, AttachType.XDP)
_UNKNOWN = ("unknown func", "invalid func", "cannot use helper", "program of this type")

_MAPS = (
    # kind, key bytes, value bytes, entries, flags
    (MapType.HASH, 16, 8, 16, _NO_PREALLOC),
    (MapType.ARRAY, 4, 8, 16, 0),
    (MapType.PROG_ARRAY, 4, 4, 16, 0),
    (MapType.PERCPU_HASH, 16, 8, 16, 0),
    (MapType.PERCPU_ARRAY, 4, 8, 16, 0),
    (MapType.LRU_HASH, 16, 8, 16, 0),
    (MapType.LRU_PERCPU_HASH, 16, 8, 16, 0),
    (MapType.LPM_TRIE, 20, 8, 16, _NO_PREALLOC),
    (MapType.RINGBUF, 0, 0, 4096, 0),
)
_HELPERS: tuple[tuple[str, int, Kind, str], ...] = (
    # name, number (enum bpf_func_id), program, what is lost without it ("" = everything)
    ("csum_diff", 28, TC, ""),
    ("skb_adjust_room", 50, TC, ""),
    ("skb_change_tail", 38, TC, ""),
    ("skb_pull_data", 39, TC, ""),
    ("skb_set_tunnel_key", 21, TC, "the overlay; use routing_mode: native"),
    ("fib_lookup", 69, TC, ""),
    ("redirect", 23, TC, ""),
    ("redirect_peer", 155, TC, ""),
    ("clone_redirect", 13, TC, ""),
    ("get_socket_cookie", 46, TC, ""),
    ("ktime_get_coarse_ns", 160, TC, ""),
    ("check_mtu", 163, TC, ""),
    ("skb_set_tstamp", 192, TC, "bandwidth limits by departure time"),
    ("xdp_adjust_head", 44, _XDP, "Services for the outside in the driver"),
)


def _instruction(code: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, immediate)


MOV_R0_0, EXIT = _instruction(0xB7), _instruction(0x95)
PASS = MOV_R0_0 + EXIT
"""Returns 0."""
ALLOW = _instruction(0xB7, 0, 0, 1) + EXIT
"""Returns 1: for programs on cgroups, that nothing is refused."""


def probe() -> Iterator[Finding]:
    """Everything about eBPF itself."""
    if problem := _said(lambda: os.close(syscall.map_create(MapType.ARRAY, 4, 8, 1, 0, "probe"))):
        fix = "run as root; on a locked-down kernel, allow bpf(2)"
        yield judged(AREA, "bpf(2)", problem, needed=True, fix=fix)
        return
    yield judged(AREA, "bpf(2)", "", needed=True)
    for layout in _MAPS:
        yield judged(AREA, f"map {layout[0].name}", _said(partial(_map, *layout)), needed=True)
    yield judged(AREA, "map read in batches", _said(_batch), needed=False, fix="tables are read one by one: slower")
    for name, kind in _program_kinds().items():
        needed = kind.type is ProgramType.SCHED_CLS
        fix = "" if needed else f"set {'xdp' if kind.type is ProgramType.XDP else 'socket_lb'} to off"
        code = PASS if needed else ALLOW
        yield judged(AREA, f"program {name}", _said(partial(_load, code, kind)), needed=needed, fix=fix)
    for name, number, kind, lost in _HELPERS:
        problem = _helper(number, kind)
        yield judged(AREA, f"helper {name}", problem, needed=not lost, fix=f"lost: {lost}" if lost else "")
    yield judged(AREA, "long programs", _said(lambda: _load(MOV_R0_0 * 8_000 + EXIT, TC)), needed=True)
    yield judged(AREA, "bounded loops", _said(lambda: _load(_loop(), TC)), needed=True)
    yield judged(AREA, "test runs", _said(_test_run), needed=False, fix="lost: benchmarks and self-tests")
    yield judged(AREA, "type information (BTF)", _btf(), needed=False, fix="lost: types in bpftool")


def _said(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return str(error.strerror or error).partition("\n")[0]
    return ""


def _map(kind: MapType, key: int, value: int, entries: int, flags: int) -> None:
    fd = syscall.map_create(kind, key, value, entries, flags, "probe")
    try:
        if kind is MapType.RINGBUF:  # read through memory: the consumer's page
            mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    finally:
        os.close(fd)


def _batch() -> None:
    fd = syscall.map_create(MapType.HASH, 4, 4, 4, _NO_PREALLOC, "probe")
    try:
        out, key = ctypes.create_string_buffer(4), ctypes.create_string_buffer(16)
        value = ctypes.create_string_buffer(16)
        places = (0, syscall.address(out), syscall.address(key), syscall.address(value))
        syscall.bpf(syscall.Cmd.MAP_LOOKUP_BATCH, struct.pack("QQQQIIQQ", *places, 4, fd, 0, 0))
    except OSError as error:
        if error.errno != errno.ENOENT:  # the map is empty: that was the end of it
            raise
    finally:
        os.close(fd)


def _program_kinds() -> dict[str, Kind]:
    return {"tc": TC, "XDP": _XDP, **{name.removeprefix("sock_"): kind for name, kind in SOCKET_HOOKS.items()}}


def _load(code: bytes, kind: Kind) -> None:
    os.close(syscall.prog_load("probe", code, kind))


def _helper(number: int, kind: Kind) -> str:
    code = _instruction(0x85, 0, 0, number) + PASS
    try:
        os.close(syscall.prog_load("probe", code, kind, log_size=4096))
    except OSError as error:
        if any(text in str(error) for text in _UNKNOWN):
            return "this kernel does not have it"
    return ""


def _loop() -> bytes:
    """r1 = 0; do r1 += 1 while r1 < 1000; return 0."""
    return _instruction(0xB7, 1) + _instruction(0x07, 1, 0, 1) + _instruction(0xA5, 1, -2, 1000) + PASS


def _test_run() -> None:
    fd = syscall.prog_load("probe", PASS, TC)
    try:
        syscall.prog_test_run(fd, bytes(64))
    finally:
        os.close(fd)


def _btf() -> str:
    try:
        with BTF.open("rb") as file:
            (magic,) = struct.unpack("<H", file.read(2))
    except (OSError, struct.error) as error:
        return f"{BTF}: {getattr(error, 'strerror', '') or 'cannot be read'}"
    return "" if magic == _BTF_MAGIC else f"{BTF} holds something else"
