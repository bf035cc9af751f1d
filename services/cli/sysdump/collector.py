"""Collectors and the archive: each is bounded in time and size, and one that fails is a note, never the end."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from services.cli.sysdump import redact
from services.common.errors import CiliateError, Invalid

AT_ONCE = 4
Pieces = AsyncIterator[str]


@dataclass(frozen=True, slots=True)
class Collector:
    """One file of the archive. `collect` starts and yields its text in pieces."""

    file: str
    collect: Callable[[], Pieces]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of every collector: `seconds`, and `size` in bytes; `total`: bytes of the whole archive before compression."""

    seconds: float = 20.0
    size: int = 16 << 20
    total: int = 512 << 20


@dataclass(frozen=True, slots=True)
class Note:
    """What became of a collector: `error` "" = it came to its end; `cut`: there would have been more."""

    file: str
    size: int
    seconds: float
    cut: bool = False
    error: str = ""


async def collect(collectors: Sequence[Collector], path: Path, bounds: Bounds, about: dict[str, object]) -> list[Note]:
    """Run all, write the archive at `path` (readable by its owner alone), return what became of each.

    The archive appears under its name when it is complete.
    """
    temporary = path.with_name(f".{path.name}.part")
    notes: list[Note] = []
    try:
        temporary.touch(mode=0o600)
        with tarfile.open(temporary, "w:gz", compresslevel=6) as archive:
            folder = path.name.partition(".tar")[0]
            await _run_all(collectors, bounds, lambda name, data: _add(archive, f"{folder}/{name}", data), notes)
            index = {**about, "collected": [asdict(note) for note in sorted(notes, key=lambda note: note.file)]}
            _add(archive, f"{folder}/index.json", json.dumps(index, indent=2).encode())
        temporary.replace(path)
    except OSError as error:
        raise Invalid(f"--output-file: cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return notes


async def _run_all(
    collectors: Sequence[Collector], bounds: Bounds, add: Callable[[str, bytes], None], notes: list[Note]
) -> None:
    slots, left = asyncio.Semaphore(AT_ONCE), bounds.total

    async def one(collector: Collector) -> None:
        nonlocal left
        async with slots:
            data, note = await _run(collector, Bounds(bounds.seconds, min(bounds.size, max(left, 0))))
        left -= len(data)
        if data:
            add(collector.file, data)
        notes.append(note)

    async with asyncio.TaskGroup() as group:
        for collector in collectors:
            group.create_task(one(collector))


async def _run(collector: Collector, bounds: Bounds) -> tuple[bytes, Note]:
    parts: list[str] = []
    size, cut, error, begun = 0, False, "", time.monotonic()
    try:
        async with asyncio.timeout(bounds.seconds):
            async for part in collector.collect():
                parts.append(part)
                size += len(part)
                if size > bounds.size:
                    cut = True
                    break
    except TimeoutError:
        error, cut = f"not done in {bounds.seconds:g} s", True
    except (CiliateError, OSError, ValueError) as problem:
        error = str(problem) or type(problem).__name__
    except Exception as problem:  # noqa: BLE001  a defect of one collector must not cost the others
        error = f"{type(problem).__name__}: {problem}"
    data = await asyncio.to_thread(lambda: redact.text("".join(parts)).encode(errors="replace")[: bounds.size])
    note = Note(collector.file, len(data), round(time.monotonic() - begun, 3), cut, redact.text(error))
    return data, note


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
    archive.addfile(info, io.BytesIO(data))


def lines(items: Sequence[object]) -> str:
    """Items as JSON lines, without secrets."""
    return "".join(json.dumps(redact.document(item), ensure_ascii=False) + "\n" for item in items)
