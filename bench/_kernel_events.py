"""Events from a real kernel program into a real ring buffer, without a datapath: for benches and tests.

A tiny eBPF program, assembled here (no compiler), copies a template record into a ring for every BPF_PROG_TEST_RUN
repetition; the template's `policy_revision` counts up, and a reserve that fails is counted beside the template.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from types import TracebackType
from typing import Any, Self

import numpy as np

_SYSCALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _PROG_LOAD, _PROG_TEST_RUN = 0, 1, 2, 5, 10
_ARRAY, _RINGBUF, _SCHED_CLS = 2, 27, 3
NO_WAKEUP, FORCE_WAKEUP = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = int(_libc.syscall(_SYSCALL, command, buffer, 128))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    return result


def _map(kind: int, key: int, value: int, entries: int) -> int:
    return _bpf(_MAP_CREATE, struct.pack("=IIIII", kind, key, value, entries, 0))


def _op(code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | destination, offset, value)


def _map_address(register: int, fd: int) -> bytes:
    return _op(0x18, register, 1, 0, fd) + _op(0)


def _program(template_fd: int, ring_fd: int, record: np.dtype[Any], flags: int) -> bytes:
    size, counter = record.itemsize, record.fields["policy_revision"][1]  # type: ignore[index]
    return b"".join(
        [
            _op(0x62, 10, 0, -4, 0),  # *(u32 *)(fp - 4) = 0
            _op(0xBF, 2, 10),  # r2 = fp - 4
            _op(0x07, 2, 0, 0, -4),
            _map_address(1, template_fd),
            _op(0x85, value=1),  # r0 = map_lookup_elem(r1, r2)
            _op(0x15, 0, 0, 14, 0),  # none: to the end
            _op(0xBF, 6, 0),
            _op(0x85, value=5),  # r0 = ktime_get_ns()
            _op(0x7B, 6, 0, 8),  # record.time_ns = r0
            _op(0xB7, 1, 0, 0, 1),
            _op(0xC3, 6, 1, counter),  # lock record.policy_revision += 1
            _map_address(1, ring_fd),
            _op(0xBF, 2, 6),
            _op(0xB7, 3, 0, 0, size),
            _op(0xB7, 4, 0, 0, flags),
            _op(0x85, value=130),  # r0 = ringbuf_output(r1, r2, r3, r4)
            _op(0x15, 0, 0, 2, 0),  # written: to the end
            _op(0xB7, 1, 0, 0, 1),
            _op(0xDB, 6, 1, (size + 7) // 8 * 8),  # lock lost += 1
            _op(0xB7, 0, 0, 0, 0),
            _op(0x95),
        ]
    )


class KernelEvents:
    """A ring, a template, a program. `emit` blocks its thread, but not the interpreter."""

    def __init__(self, record: np.dtype[Any], ring_bytes: int, flags: int = NO_WAKEUP) -> None:
        self._record = record
        self._lost_at = (record.itemsize + 7) // 8 * 8
        self._fds = [_map(_RINGBUF, 0, 0, ring_bytes), _map(_ARRAY, 4, self._lost_at + 8, 1)]
        self.ring_fd, self._template_fd = self._fds
        code = _program(self._template_fd, self.ring_fd, record, flags)
        self._code, self._license = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
        attributes = struct.pack(
            "=IIQQ", _SCHED_CLS, len(code) // 8, ctypes.addressof(self._code), ctypes.addressof(self._license)
        )
        self._program = _bpf(_PROG_LOAD, attributes)
        self._fds.append(self._program)
        self._packet = ctypes.create_string_buffer(64)

    def template(self, record: Any) -> None:
        """What every event looks like from now on (`time_ns` and `policy_revision` aside); resets the loss count."""
        value = record.tobytes().ljust(self._lost_at + 8, b"\0")
        key, held = ctypes.create_string_buffer(4), ctypes.create_string_buffer(value, len(value))
        _bpf(_MAP_UPDATE, struct.pack("=IIQQQ", self._template_fd, 0, ctypes.addressof(key), ctypes.addressof(held), 0))

    def emit(self, count: int) -> float:
        """Let the program run `count` times; returns nanoseconds per run."""
        attributes = struct.pack(
            "=IIIIQQII", self._program, 0, 64, 0, ctypes.addressof(self._packet), 0, count, 0
        ).ljust(128, b"\0")
        buffer = ctypes.create_string_buffer(attributes, 128)
        if _libc.syscall(_SYSCALL, _PROG_TEST_RUN, buffer, 128) < 0:
            raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
        return float(struct.unpack_from("=IIIIQQII", buffer.raw)[7])

    def lost(self) -> int:
        """Events that found the ring full."""
        key, held = ctypes.create_string_buffer(4), ctypes.create_string_buffer(self._lost_at + 8)
        _bpf(_MAP_LOOKUP, struct.pack("=IIQQQ", self._template_fd, 0, ctypes.addressof(key), ctypes.addressof(held), 0))
        return int(struct.unpack_from("=Q", held.raw, self._lost_at)[0])

    def read(self) -> dict[tuple[int, int], int]:
        """The same as `LostCounters` of the agent's event pipeline."""
        return {(1, 0): self.lost()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._fds:
            os.close(fd)
