"""The archive: bounds, failures as notes, readable by its owner alone, complete or not there."""

from __future__ import annotations

import asyncio
import json
import stat
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from services.cli.sysdump import machine
from services.cli.sysdump.collector import Bounds, Collector, collect
from services.common.errors import Invalid, Unavailable


def saying(*parts: str) -> Callable[[], AsyncIterator[str]]:
    async def work() -> AsyncIterator[str]:
        for part in parts:
            yield part

    return work


async def failing() -> AsyncIterator[str]:
    yield "this much\n"
    raise Unavailable("the relay at x does not answer: password=hunter2")


async def broken() -> AsyncIterator[str]:
    yield "a"
    raise KeyError("oops")


async def endless() -> AsyncIterator[str]:
    while True:
        yield "x" * 1000


async def stuck() -> AsyncIterator[str]:
    yield "first"
    await asyncio.sleep(60)


def read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    with tarfile.open(path) as archive:
        texts = {}
        for member in archive.getmembers():
            assert member.mode == 0o600
            file = archive.extractfile(member)
            assert file is not None
            texts[member.name.partition("/")[2]] = file.read().decode()
    return texts, json.loads(texts["index.json"])


async def test_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "dump.tar.gz"
    found = [
        Collector("a/good.txt", saying("one\n", "two\n")),
        Collector("failing.txt", failing),
        Collector("broken.txt", broken),
        Collector("endless.txt", endless),
        Collector("stuck.txt", stuck),
        Collector("empty.txt", saying()),
    ]
    await collect(found, path, Bounds(seconds=0.3, size=5000), {"version": "1"})
    texts, index = read(path)
    notes = {note["file"]: note for note in index["collected"]}
    assert texts["a/good.txt"] == "one\ntwo\n"
    assert notes["a/good.txt"] | {"seconds": 0} == {
        "file": "a/good.txt",
        "size": 8,
        "seconds": 0,
        "cut": False,
        "error": "",
    }
    assert texts["failing.txt"] == "this much\n", "what came before the failure is kept"
    assert "does not answer" in notes["failing.txt"]["error"]
    assert "hunter2" not in json.dumps(index)
    assert notes["broken.txt"]["error"] == "KeyError: 'oops'"
    assert (notes["endless.txt"]["cut"], notes["endless.txt"]["size"]) == (True, 5000)
    assert (texts["stuck.txt"], notes["stuck.txt"]["error"]) == ("first", "not done in 0.3 s")
    assert (index["version"], "empty.txt" in texts) == ("1", False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["dump.tar.gz"]


async def test_all_together_are_bounded(tmp_path: Path) -> None:
    found = [Collector(f"{number}.txt", endless) for number in range(12)]
    notes = await collect(found, tmp_path / "dump.tar.gz", Bounds(5, size=10_000, total=40_000), {})
    assert sum(note.size for note in notes) <= 40_000 + 4 * 10_000
    assert all(note.cut for note in notes)


async def test_interrupted_there_is_no_archive(tmp_path: Path) -> None:
    task = asyncio.create_task(collect([Collector("stuck.txt", stuck)], tmp_path / "d.tar.gz", Bounds(60), {}))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list(tmp_path.iterdir())


async def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="--output-file: cannot write"):
        await collect([], tmp_path / "missing" / "d.tar.gz", Bounds(), {})


async def test_commands_end_with_the_one_who_asked(tmp_path: Path) -> None:
    path = tmp_path / "d.tar.gz"
    commands = [
        Collector("stuck.txt", machine._command("echo begun; sleep 60")),
        Collector("missing.txt", machine._program(["no-such-program-here"])),
        Collector("failed.txt", machine._command("echo why; exit 3")),
        Collector("tail.log", machine._tail(tmp_path / "log")),
        Collector("none.log", machine._tail(tmp_path / "none")),
    ]
    (tmp_path / "log").write_bytes(b"a" * machine.TAIL + b"the end")
    notes = {note.file: note for note in await collect(commands, path, Bounds(seconds=0.5), {})}
    texts, _ = read(path)
    assert texts["stuck.txt"] == "begun\n"
    assert notes["missing.txt"].error == "no-such-program-here is not installed here"
    assert "status 3" in notes["failed.txt"].error
    assert len(texts["tail.log"]) == machine.TAIL
    assert texts["tail.log"].endswith("the end")
    assert "No such file" in notes["none.log"].error
