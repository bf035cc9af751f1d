"""A file of lines that is rotated by size and age, a bounded number of old ones kept, compressed on wish.

Blocking: called in a thread. A line is in the file whole or not at all, also when the disk fills up in its middle. A
file that somebody else renames or removes (logrotate) is left alone: the next write makes a new one.
"""

from __future__ import annotations

import contextlib
import datetime
import gzip
import os
import shutil
import time
from pathlib import Path

from services.common.errors import Invalid


class RotatingFile:
    """Append with `write`; raises `OSError`, after which what was not written may be tried again or given up."""

    def __init__(
        self, path: Path, *, max_bytes: int, max_age_s: float = 0, max_backups: int = 5, compress: bool = False
    ) -> None:
        """Opens the file; raises `Invalid` where that is not possible."""
        self._path, self._max_bytes, self._max_age_s = path, max_bytes, max_age_s
        self._max_backups, self._compress = max_backups, compress
        self._descriptor = -1
        self._size = 0
        self._since = 0.0
        try:
            self._open()
        except OSError as error:
            raise Invalid(f"{path}: cannot write: {error.strerror}; give a file in a folder that exists") from error

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        status = os.fstat(self._descriptor)
        self._size, self._since = status.st_size, time.time()
        if self._size:
            self._mend()

    def _mend(self) -> None:
        """A process that was killed in the middle of a line: what it began is cut off."""
        with open(self._path, "rb") as file:
            position = self._size
            while position:
                step = min(position, 1 << 16)
                file.seek(position - step)
                end = file.read(step).rfind(b"\n")
                if end >= 0:
                    position += end + 1 - step
                    break
                position -= step
        if position != self._size:
            os.ftruncate(self._descriptor, position)
            self._size = position

    def write(self, lines: bytes) -> None:
        """Append whole lines, all or none of them."""
        self._follow_renames()
        full = self._size and self._size + len(lines) > self._max_bytes
        old = self._max_age_s and self._size and time.time() - self._since >= self._max_age_s
        if full or old:
            self._rotate()
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._descriptor, memoryview(lines)[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(lines)

    def _follow_renames(self) -> None:
        if self._descriptor >= 0:
            here = os.fstat(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                there = os.stat(self._path, follow_symlinks=False)
                if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                    self._size = there.st_size  # somebody may have cut it
                    return
        self.close()
        self._open()

    def _rotate(self) -> None:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
        backup = self._path.with_name(f"{self._path.stem}-{stamp}{self._path.suffix}")
        self.close()
        try:
            os.rename(self._path, backup)
        finally:
            self._open()
        if self._compress:
            _compress(backup)
        self._clean()

    def _clean(self) -> None:
        for old in self.backups()[: -self._max_backups or None]:
            old.unlink(missing_ok=True)

    def backups(self) -> list[Path]:
        """The rotated files, oldest first."""
        stem, suffix = self._path.stem, self._path.suffix
        return sorted(
            each
            for each in self._path.parent.iterdir()
            if each.name.startswith(f"{stem}-") and each.name.removesuffix(".gz").endswith(suffix)
        )

    def close(self) -> None:
        """Give the file back; it may be opened again by `write`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _compress(path: Path) -> None:
    target = path.with_name(path.name + ".gz")
    aside = path.with_name(path.name + ".gz.tmp")
    try:
        with open(path, "rb") as source, gzip.open(aside, "wb", compresslevel=6) as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        aside.replace(target)
        path.unlink()
    except OSError:
        aside.unlink(missing_ok=True)  # it stays as it is: readable, only larger
