"""Names of history files: a listing alone tells what is where. Retention by size and age.

`flows-<first ns>-<last ns>-<epoch>-<base>-<rows>.parquet`: times of the rows, the process that wrote them (the time
it began), their position in its store. A file is complete or not there: it is written under another name, synced and
renamed. The growing last segment of a process is written again and again; the copy with the most rows counts.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import Unavailable

NAME = re.compile(r"flows-(\d{1,19})-(\d{1,19})-(\d{1,19})-(\d{1,19})-(\d{1,10})\.parquet")
TEMPORARY = ".part"
BROKEN = ".broken"
LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One file of rows; times are wall-clock nanoseconds, inclusive."""

    path: Path
    first_ns: int
    last_ns: int
    epoch: int
    base: int
    rows: int
    size: int

    @property
    def segment(self) -> tuple[int, int]:
        """Which segment it is a copy of."""
        return self.epoch, self.base


def name_of(first_ns: int, last_ns: int, epoch: int, base: int, rows: int) -> str:
    """The name of a file with these rows."""
    return f"flows-{first_ns}-{last_ns}-{epoch}-{base}-{rows}.parquet"


def read_name(path: Path) -> SegmentFile | None:
    """What a file's name says; None for other files and for those that are gone meanwhile."""
    match = NAME.fullmatch(path.name)
    if match is None:
        return None
    first, last, epoch, base, rows = map(int, match.groups())
    try:
        size = path.stat().st_size
    except OSError:
        return None
    return SegmentFile(path, first, last, epoch, base, rows, size) if rows and last >= first else None


def listing(folder: Path) -> list[SegmentFile]:
    """The files of a folder in order of time, each segment once. Raises OSError."""
    best: dict[tuple[int, int], SegmentFile] = {}
    for found in sorted(filter(None, map(read_name, folder.iterdir())), key=lambda each: each.rows):
        best[found.segment] = found
    return ordered(best.values())


def claim(folder: Path) -> int:
    """Make the folder ours, until the descriptor that is returned is closed or the process ends.

    What writers that were killed left behind is removed. Raises `Unavailable` naming the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _tidy(folder)
        except BaseException:
            os.close(descriptor)
            raise
    except BlockingIOError as error:
        raise Unavailable(f"history_dir {folder}: another relay writes there; give each its own folder") from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise Unavailable(f"history_dir {folder}: {reason}; give a folder that may be written") from error
    return descriptor


def _tidy(folder: Path) -> None:
    whole = {found.path for found in listing(folder)}
    for path in folder.iterdir():
        superseded = read_name(path) is not None and path not in whole
        if superseded or path.name.endswith(TEMPORARY):
            path.unlink(missing_ok=True)


def ordered(files: Iterable[SegmentFile]) -> list[SegmentFile]:
    """By process, then by position: the order in which rows were appended."""
    return sorted(files, key=lambda each: each.segment)


def write(folder: Path, name: str, fill: Callable[[Path], None]) -> SegmentFile:
    """Make a file: `fill` writes it under another name, then it appears at once. Raises OSError."""
    path = folder / name
    temporary = folder / f"{name}{TEMPORARY}"
    try:
        fill(temporary)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(folder)
    found = read_name(path)
    if found is None:
        raise FileNotFoundError(path)
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expired(files: Iterable[SegmentFile], *, max_bytes: int, before_ns: int) -> list[SegmentFile]:
    """What has to go: everything that ended before `before_ns`, then the oldest until the rest fits."""
    kept = ordered(files)
    gone = [each for each in kept if each.last_ns < before_ns]
    kept = [each for each in kept if each.last_ns >= before_ns]
    size = sum(each.size for each in kept)
    while kept and size > max_bytes:
        size -= kept[0].size
        gone.append(kept.pop(0))
    return gone


def set_aside(found: SegmentFile) -> None:
    """A file that cannot be read is kept for people under another name, out of every query's way."""
    found.path.rename(found.path.with_name(found.path.name + BROKEN))
