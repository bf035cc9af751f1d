"""Pinned maps by bpf(2): single and batch operations on bytes. No bcc, no libbpf: 2 MB less and no global state.

Layouts are `services.agent.abi`'s business. Errors are ours: NotFound (no such pin), Exhausted (the map is full),
Denied (not root), Internal (anything the kernel should not have said).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from services.agent.datapath import syscall
from services.agent.datapath.syscall import Cmd, MapType, address, bpf
from services.common.errors import CiliateError, Denied, Exhausted, Internal, NotFound

BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2
_PER_CPU = (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH)
_BATCH = 4096


def possible_cpus() -> int:
    """How many values a per-CPU entry has."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def translate(error: OSError, what: str) -> CiliateError:
    """A kernel error in our words."""
    if error.errno == errno.ENOENT:
        return NotFound(f"{what}: not there")
    if error.errno in (errno.E2BIG, errno.ENOSPC, errno.ENOMEM):
        return Exhausted(f"{what}: full ({error.strerror})")
    if error.errno in (errno.EPERM, errno.EACCES):
        return Denied(f"{what}: needs root ({error.strerror})")
    return Internal(f"{what}: {error.strerror}")


class PinnedMap:
    """One map. Keys and values are bytes of exactly `key_size` and `value_size`. Use as a context manager or close."""

    def __init__(self, path: Path | str) -> None:
        """Open a pin; raises NotFound when it is not there."""
        self.path = Path(path)
        self.name = self.path.name
        try:
            self.fd = syscall.obj_get(self.path)
            info = syscall.map_info(self.fd)
        except OSError as error:
            raise translate(error, f"map {self.path}") from error
        self.type = info.type
        self.key_size = info.key_size
        self.max_entries = info.max_entries
        self.flags = info.flags
        self.per_cpu = info.type in _PER_CPU
        self._cpu_size = info.value_size
        self.value_size = (info.value_size + 7) // 8 * 8 * possible_cpus() if self.per_cpu else info.value_size

    def close(self) -> None:
        """Let go of the descriptor; the pin stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _elem(self, cmd: Cmd, key: bytes, value: ctypes.Array[ctypes.c_char] | None, flags: int = 0) -> None:
        if len(key) != self.key_size:
            raise Internal(f"map {self.name}: keys have {self.key_size} bytes, not {len(key)}")
        k = ctypes.create_string_buffer(key, len(key))
        bpf(cmd, struct.pack("IIQQQ", self.fd, 0, address(k), address(value) if value is not None else 0, flags))

    def lookup(self, key: bytes) -> bytes | None:
        """The value (of all CPUs, one after the other, for per-CPU maps) or None."""
        return self._read(Cmd.MAP_LOOKUP_ELEM, key)

    def take(self, key: bytes) -> bytes | None:
        """Remove an entry and return its last value, in one step. Hash kinds only."""
        return self._read(Cmd.MAP_LOOKUP_AND_DELETE_ELEM, key)

    def _read(self, cmd: Cmd, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self.value_size)
        try:
            self._elem(cmd, key, value)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise translate(error, f"map {self.name}") from error
        return value.raw

    def lookup_percpu(self, key: bytes) -> list[bytes]:
        """A per-CPU entry, one value per possible CPU."""
        raw = self.lookup(key) or bytes(self.value_size)
        stride = (self._cpu_size + 7) // 8 * 8
        return [raw[i : i + self._cpu_size] for i in range(0, len(raw), stride)]

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Write an entry. Exhausted when the map is full."""
        if len(value) != self.value_size:
            raise Internal(f"map {self.name}: values have {self.value_size} bytes, not {len(value)}")
        try:
            self._elem(Cmd.MAP_UPDATE_ELEM, key, ctypes.create_string_buffer(value, len(value)), flags)
        except OSError as error:
            raise translate(error, f"map {self.name}") from error

    def delete(self, key: bytes) -> None:
        """Remove an entry; an absent one is a success. Array entries are zeroed, they cannot be removed."""
        if self.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
            self.update(key, bytes(self.value_size))
            return
        try:
            self._elem(Cmd.MAP_DELETE_ELEM, key, None)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise translate(error, f"map {self.name}") from error

    def update_batch(self, entries: Mapping[bytes, bytes]) -> None:
        """Write many entries, in their order, with few system calls."""
        items = list(entries.items())
        for start in range(0, len(items), _BATCH):
            part = items[start : start + _BATCH]
            keys = b"".join(key for key, _ in part)
            values = b"".join(value for _, value in part)
            if len(keys) != len(part) * self.key_size or len(values) != len(part) * self.value_size:
                raise Internal(f"map {self.name}: a key or value has the wrong size")
            try:
                self._batch(Cmd.MAP_UPDATE_BATCH, keys, values, len(part))
            except OSError as error:
                raise translate(error, f"map {self.name}") from error

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Remove many entries; absent ones are a success."""
        left = list(keys)
        if self.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
            self.update_batch({key: bytes(self.value_size) for key in left})
            return
        while left:
            part = left[:_BATCH]
            left = left[_BATCH:]
            done = len(part)
            try:
                self._batch(Cmd.MAP_DELETE_BATCH, b"".join(part), None, len(part))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise translate(error, f"map {self.name}") from error
                done = self._processed + 1  # go on behind the one that was not there
            left = part[done:] + left

    def delete_packed(self, keys: bytes) -> int:
        """Remove many entries, their keys one behind the other; how many of them were there."""
        view, removed, position, end = memoryview(keys), 0, 0, len(keys) // self.key_size
        while position < end:
            part = min(end - position, _BATCH)
            rest = bytes(view[position * self.key_size : (position + part) * self.key_size])
            try:
                self._batch(Cmd.MAP_DELETE_BATCH, rest, None, part)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise translate(error, f"map {self.name}") from error
                removed += self._processed
                position += self._processed + 1  # go on behind the one that was not there
                continue
            removed += part
            position += part
        return removed

    def _batch(self, cmd: Cmd, keys: bytes, values: bytes | None, count: int) -> None:
        k = ctypes.create_string_buffer(keys, len(keys))
        v = ctypes.create_string_buffer(values, len(values)) if values is not None else None
        attr = ctypes.create_string_buffer(160)
        struct.pack_into(
            "QQQQIIQQ", attr, 0, 0, 0, address(k), address(v) if v is not None else 0, count, self.fd, 0, 0
        )
        try:
            bpf(cmd, attr)
        finally:
            self._processed = struct.unpack_from("I", attr, 32)[0]

    def chunks(self, count: int = _BATCH) -> Iterator[tuple[bytes, bytes, int]]:
        """All entries as (keys, values, how many): concatenated bytes, for numpy. Entries that change meanwhile may
        be missed or met twice."""
        token: bytes | None = None
        while True:
            try:
                keys, values, token, got, last = self._chunk(token, count)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise translate(error, f"map {self.name}") from error
                count *= 4  # one hash bucket did not fit
                continue
            if got:
                yield keys, values, got
            if last:
                return

    def _chunk(self, token: bytes | None, count: int) -> tuple[bytes, bytes, bytes, int, bool]:
        size = max(self.key_size, 8)
        k = ctypes.create_string_buffer(self.key_size * count)
        v = ctypes.create_string_buffer(self.value_size * count)
        after = ctypes.create_string_buffer(size)
        before = ctypes.create_string_buffer(token, size) if token is not None else None
        attr = ctypes.create_string_buffer(160)
        start = address(before) if before is not None else 0
        struct.pack_into("QQQQIIQQ", attr, 0, start, address(after), address(k), address(v), count, self.fd, 0, 0)
        last = False
        try:
            bpf(Cmd.MAP_LOOKUP_BATCH, attr)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            last = True
        got = struct.unpack_from("I", attr, 32)[0]
        return k.raw[: got * self.key_size], v.raw[: got * self.value_size], after.raw, got, last

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, one by one."""
        for keys, values, got in self.chunks():
            for i in range(got):
                yield (
                    keys[i * self.key_size : (i + 1) * self.key_size],
                    values[i * self.value_size : (i + 1) * self.value_size],
                )

    def count(self) -> int:
        """How many entries there are now."""
        return sum(got for _, _, got in self.chunks())


@contextlib.contextmanager
def opened(root: Path, *names: str) -> Iterator[dict[str, PinnedMap]]:
    """Open several maps of a node, close them at the end."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(PinnedMap(root / "maps" / name)) for name in names}
