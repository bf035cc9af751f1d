"""inotify on asyncio: which paths below a folder changed. libc through ctypes, no thread, no dependency."""

from __future__ import annotations

import asyncio
import ctypes
import os
import stat
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from services.common.errors import Unavailable

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_Q_OVERFLOW, _IGNORED, _ISDIR, _ONLYDIR = 0x4000, 0x8000, 0x40000000, 0x01000000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """Tells which files below `root` may have changed; hidden folders are not watched.

    A file is told when it is complete: on close after writing, or when a rename puts it there. It is the caller who
    looks what is there now, so a change that is told twice, or together with its undoing, is harmless.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fd = -1
        self._folders: dict[int, Path] = {}
        self._changed: set[Path] = set()
        self._everything = False
        self._ready = asyncio.Event()

    def __enter__(self) -> Self:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise Unavailable(f"inotify: {os.strerror(ctypes.get_errno())}; raise fs.inotify.max_user_instances")
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        self._add_tree(self._root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    async def changes(self) -> set[Path] | None:
        """Wait for changes. None = look at everything: folders appeared or vanished, or the kernel lost events."""
        await self._ready.wait()
        self._ready.clear()
        changed, everything = self._changed, self._everything
        self._changed, self._everything = set(), False
        return None if everything else changed

    def _add_tree(self, top: Path) -> None:
        self._add(top)
        for folder, names, _files in os.walk(top):
            names[:] = [name for name in names if not name.startswith(".")]
            for name in names:
                self._add(Path(folder, name))

    def _add(self, folder: Path) -> None:
        descriptor = _libc.inotify_add_watch(self._fd, os.fsencode(folder), _MASK)
        if descriptor >= 0:
            self._folders[descriptor] = folder
        elif folder == self._root or ctypes.get_errno() == 28:  # ENOSPC: no watch left, going on would be blind
            raise Unavailable(f"cannot watch {folder}: {os.strerror(ctypes.get_errno())}")

    def _read(self) -> None:
        try:
            raw = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(raw):
            descriptor, mask, _cookie, length = _EVENT.unpack_from(raw, offset)
            name = raw[offset + _EVENT.size : offset + _EVENT.size + length].rstrip(b"\0")
            offset += _EVENT.size + length
            self._event(descriptor, mask, os.fsdecode(name))
        self._ready.set()

    def _event(self, descriptor: int, mask: int, name: str) -> None:
        folder = self._folders.get(descriptor)
        if mask & _IGNORED:
            self._folders.pop(descriptor, None)
        elif mask & (_Q_OVERFLOW | _DELETE_SELF | _MOVE_SELF) or folder is None:
            self._everything = True
        elif mask & _ISDIR:
            if not name.startswith("."):
                self._everything = True
                if mask & (_CREATE | _MOVED_TO):
                    self._add_tree(folder / name)
        elif not mask & _CREATE or _is_link(folder / name):
            self._changed.add(folder / name)


def _is_link(path: Path) -> bool:
    """Links are complete when they are created: nobody will close them."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISLNK(status.st_mode) or status.st_nlink > 1
