"""Exports to files: what is asked for, lines, rotation, disks that fill up, files that others move, a watched file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from prometheus_client import CollectorRegistry

from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2
from services.flows.entries import NodeRef
from services.flows.export import keeper, rotation, spec
from services.flows.export.exporter import Exporter
from services.flows.export.options import ExportOptions
from services.flows.export.rotation import RotatingFile
from services.flows.export.spec import ExportSpec

SERVER = NodeRef("node1")


def read(*paths: Path) -> list[observer_pb2.ExportEvent]:
    """Files as Hubble's own message for them."""
    lines = [line for path in paths for line in _text(path).splitlines()]
    return [Parse(line, observer_pb2.ExportEvent()) for line in lines]


def _text(path: Path) -> str:
    return gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - files and counters
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def exporting(exporter: Exporter) -> AsyncIterator[Exporter]:
    task = asyncio.create_task(exporter.run())
    await asyncio.sleep(0)
    try:
        yield exporter
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.flows.export.exporter.FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(keeper, "LOOK_SECONDS", 0.01)


async def test_flows_and_losses_are_lines_that_the_stock_client_reads(flows: Any, tmp_path: Path) -> None:
    flows.add()  # before the start: not exported
    path = tmp_path / "flows.log"
    async with exporting(Exporter(ExportSpec("a", str(path)), flows.store, SERVER)) as exporter:
        time = flows.allow()
        flows.store.append_lost(1, 1, 3, 17, time, time)
        flows.drop()
        await until(lambda: exporter.figures.written == 2)
    found = read(path)
    assert [each.WhichOneof("response_types") for each in found] == ["flow", "lost_events", "flow"]
    assert found[0].flow.source.pod_name == "client"
    assert found[0].time == found[0].flow.time
    assert found[0].node_name == "node1"
    assert (found[1].lost_events.num_events_lost, found[1].lost_events.cpu.value) == (17, 3)
    document = json.loads(path.read_text().splitlines()[2])
    assert document["flow"]["IP"]["ipVersion"] == "IPv4"  # proto names, enums by name
    assert document["flow"]["drop_reason_desc"] == "POLICY_DENIED"
    assert path.stat().st_mode & 0o077 == 0


async def test_allow_and_deny_lists_and_a_mask(flows: Any, tmp_path: Path) -> None:
    path = tmp_path / "drops.log"
    wanted = ExportSpec(
        "drops",
        str(path),
        include=('{"verdict":["DROPPED"]}',),
        exclude=('{"destination_port":["81"]}',),
        fields=("verdict", "l4.TCP.destination_port", "source.pod_name"),
    )
    async with exporting(Exporter(wanted, flows.store, SERVER)) as exporter:
        flows.add()
        flows.drop(destination_port=81)
        flows.drop(destination_port=82)
        await until(lambda: exporter.figures.written == 1)
    (only,) = read(path)
    assert json.loads(path.read_text()) == {
        "flow": {
            "verdict": "DROPPED",
            "l4": {"TCP": {"destination_port": 82}},
            "source": {"pod_name": "client"},
        },
        "node_name": "node1",
        "time": only.time.ToJsonString(),
    }


async def test_an_export_ends_at_its_end(flows: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    last = flows.add()
    exporter = Exporter(ExportSpec("a", str(path), end_ns=last + 1_500_000), flows.store, SERVER)
    task = asyncio.create_task(exporter.run())
    await asyncio.sleep(0)
    flows.add()
    flows.add()
    flows.add()
    async with asyncio.timeout(5):
        await task
    assert len(read(path)) == 1


async def test_a_full_disk_loses_lines_that_are_counted_and_told(
    flows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, full = tmp_path / "a.log", False
    real = os.write

    def write(descriptor: int, data: Any) -> int:
        if not full:
            return real(descriptor, data)
        real(descriptor, bytes(data)[:10])  # the last few bytes still went in
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rotation.os, "write", write)
    async with exporting(Exporter(ExportSpec("a", str(path)), flows.store, SERVER)) as exporter:
        flows.add()
        await until(lambda: exporter.figures.written == 1)
        full = True
        flows.add()
        time = flows.add()
        flows.store.append_lost(1, 1, 0, 5, time, time)
        await until(lambda: exporter.figures.refused == 2)
        await until(lambda: "No space left" in exporter.figures.error)
        assert len(read(path)) == 1  # no half line
        full = False
        flows.add()
        await until(lambda: exporter.figures.written == 2)
        assert exporter.figures.error == ""
    found = read(path)
    kinds = [each.WhichOneof("response_types") for each in found]
    assert kinds == ["flow", "lost_events", "flow"]
    assert found[1].lost_events.num_events_lost == 2 + 5  # flows, and losses whose line was lost
    assert exporter.figures.written + exporter.figures.refused == 4


async def test_a_reader_that_the_store_overtakes_accounts_for_every_flow(new_flows: Any, tmp_path: Path) -> None:
    flows, path = new_flows(512), tmp_path / "a.log"
    async with exporting(Exporter(ExportSpec("a", str(path)), flows.store, SERVER)) as exporter:
        for _ in range(3000):  # without a turn for the exporter
            flows.add()
        await until(lambda: exporter.figures.written + exporter.figures.missed == 3000)
    assert exporter.figures.missed > 0
    found = read(path)
    assert sum(each.WhichOneof("response_types") == "flow" for each in found) == exporter.figures.written
    told = [each.lost_events for each in found if each.HasField("lost_events")]
    assert sum(each.num_events_lost for each in told) == exporter.figures.missed
    assert {each.source for each in told} == {flow_pb2.HUBBLE_RING_BUFFER}


def lines(*numbers: int) -> bytes:
    return b"".join(b"%06d\n" % number for number in numbers)


def everything(file: RotatingFile, path: Path) -> list[int]:
    return [int(line) for each in (*file.backups(), path) for line in _text(each).split()]


@pytest.mark.parametrize("compress", [False, True])
def test_rotation_by_size_keeps_so_many(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / "a.log"
    (tmp_path / "another.log").write_text("not ours\n")
    file = RotatingFile(path, max_bytes=70, max_backups=3, compress=compress)
    for number in range(60):
        file.write(lines(number))
    assert len(file.backups()) == 3
    assert all(each.suffix == (".gz" if compress else ".log") for each in file.backups())
    assert path.stat().st_size <= 70
    found = everything(file, path)
    assert found == list(range(60))[-len(found) :]
    assert len(found) == 40
    file.close()


def test_rotation_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(rotation.time, "time", lambda: now)
    path = tmp_path / "a.log"
    file = RotatingFile(path, max_bytes=1 << 20, max_age_s=60)
    file.write(lines(1))
    now += 59
    file.write(lines(2))
    assert file.backups() == []
    now += 1
    file.write(lines(3))
    assert [_text(each) for each in file.backups()] == ["000001\n000002\n"]
    assert path.read_text() == "000003\n"
    file.close()


def test_a_file_that_others_move_cut_or_remove_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = RotatingFile(path, max_bytes=1 << 20)
    file.write(lines(1))
    path.rename(tmp_path / "moved")
    file.write(lines(2))
    assert ((tmp_path / "moved").read_text(), path.read_text()) == ("000001\n", "000002\n")
    path.unlink()
    file.write(lines(3))
    assert path.read_text() == "000003\n"
    os.truncate(path, 0)  # logrotate's copytruncate
    file.write(lines(4))
    assert path.read_text() == "000004\n"
    file.close()
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):
        file.write(lines(5))
    tmp_path.mkdir()
    file.write(lines(6))
    assert path.read_text() == "000006\n"
    file.close()


def test_a_line_that_a_kill_cut_is_taken_out_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(lines(1, 2) + b"0000")
    file = RotatingFile(path, max_bytes=1 << 20)
    file.write(lines(3))
    file.close()
    assert path.read_bytes() == lines(1, 2, 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)], check=True)
    try:
        file = RotatingFile(tmp_path / "a.log", max_bytes=1 << 20)
        big = b"x" * 4095 + b"\n"
        file.write(big)
        with pytest.raises(OSError, match="No space left"):
            file.write(big * 4)
        assert (tmp_path / "a.log").stat().st_size % 4096 == 0
        (tmp_path / "a.log").unlink()
        file.write(big)  # room again
        file.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def options(**values: Any) -> ExportOptions:
    return ExportOptions(insecure=True, **values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"export_allowlist": ["{"]}, "export_allowlist.*'{' is no FlowFilter"),
        ({"export_allowlist": ['{"verdict":["NOPE"]}']}, "NOPE"),
        ({"export_denylist": ['{"source_ip":["10.0.0"]}']}, "source_ip"),
        ({"export_fieldmask": ["source.nope"]}, "fieldMask: 'source.nope' is no field"),
        (
            {"export_file_path": "/nonexistent/folder/a.log"},
            "filePath: /nonexistent/folder/a.log: cannot write: No",
        ),
        ({"export_dynamic_config": "/nonexistent.yaml"}, "export_dynamic_config: cannot read"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(
    flows: Any, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    values = {"export_file_path": str(tmp_path / "a.log")} | given
    with pytest.raises(Invalid, match=message):
        keeper.Keeper(options(**values), flows.store, SERVER, CollectorRegistry())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flowLogs: 3", "list flowLogs"),
        ("[1, 2", "not YAML"),
        ("flowLogs: [3]", r"flowLogs\[0\]: must be a mapping"),
        ("flowLogs: [{name: a}]", r"flowLogs\[0\].filePath: needed"),
        ("flowLogs: [{name: a, filePath: /a, filepath: /b}]", "did you mean filePath"),
        ("flowLogs: [{name: a, filePath: 3}]", r"flowLogs\[0\].filePath: must be a text, not 3"),
        ("flowLogs: [{name: a, filePath: /a, end: soon}]", r"flowLogs\[0\].end: .*soon"),
        ("flowLogs: [{name: a, filePath: /a, fileMaxSizeMb: -1}]", "fileMaxSizeMb: must be a whole number"),
        ("flowLogs: [{name: a, filePath: /a}, {name: a, filePath: /b}]", "two of name 'a'"),
        ("flowLogs: [{name: a, filePath: /a}, {name: b, filePath: /a}]", "two of path '/a'"),
        ("flowLogs: [{name: a, filePath: /a, includeFilters: [{verdict: [NOPE]}]}]", "a: includeFilters: .*NOPE"),
    ],
)
def test_a_watched_file_that_is_wrong_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(Invalid, match=message):
        spec.from_file(tmp_path / "c.yaml")


async def test_the_watched_file_is_followed(flows: Any, tmp_path: Path) -> None:
    watched = tmp_path / "flowlogs.yaml"

    def ask(*entries: dict[str, Any]) -> None:
        watched.write_text(json.dumps({"flowLogs": entries}))

    def entry(name: str, **rest: Any) -> dict[str, Any]:
        return {"name": name, "filePath": str(tmp_path / f"{name}.log"), **rest}

    def written(name: str) -> int:
        path = tmp_path / f"{name}.log"
        return len(path.read_text().splitlines()) if path.exists() else 0

    ask(entry("all"), entry("drops", includeFilters=[{"verdict": ["DROPPED"]}]))
    registry = CollectorRegistry()
    kept = keeper.Keeper(options(export_dynamic_config=str(watched)), flows.store, SERVER, registry)
    task = asyncio.create_task(kept.run())
    try:
        await asyncio.sleep(0)
        flows.add()
        flows.drop()
        await until(lambda: (written("all"), written("drops")) == (2, 1))
        watched.write_text("flowLogs: {")  # broken: what was asked for last goes on
        await until(lambda: "not YAML" in kept.errors.get("export_dynamic_config", ""))
        flows.add()
        await until(lambda: written("all") == 3)
        ask(entry("all"), entry("late", fieldMask=["verdict"]), {"name": "bad", "filePath": "/nonexistent/b.log"})
        await until(lambda: "cannot write" in kept.errors.get("export bad", ""))
        await until((tmp_path / "late.log").exists)
        flows.drop()
        await until(lambda: (written("all"), written("late"), written("drops")) == (4, 1, 1))
        ask(entry("all"))
        await until(lambda: not kept.errors)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def count(**labels: str) -> float | None:
        return registry.get_sample_value("ciliate_export_events_total", labels)

    assert (count(export="all"), count(export="drops"), count(export="late")) == (4, 1, 1)
