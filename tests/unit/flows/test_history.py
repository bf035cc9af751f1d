"""Flows on disk: what is read back is what was written, whatever happened to the process and the files meanwhile."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from services.common.errors import Unavailable
from services.common.pb.flow import flow_pb2 as pb
from services.flows.columns import STORED, Kind
from services.flows.entries import Decision, NearestRule, NodeRef, PolicyRef, ProcessRef, ServiceRef
from services.flows.filters import Filters
from services.flows.follow import past
from services.flows.history import files
from services.flows.history.history import History, open_history
from services.flows.render import Renderer
from services.flows.select import Window

HOUR = 3600 * 10**9
START = 1_700_000_000_000_000_000
OTHER = NodeRef("node2", "west", ("zone=b",))


def history(folder: Path, flows: Any, epoch: int = START + HOUR, **limits: Any) -> History:
    """A history as a process that began at `epoch` has it; its clock stands still."""
    values: dict[str, Any] = {"max_bytes": 1 << 30, "max_age_s": 1e6} | limits
    return History(folder, flows.store, now=lambda: epoch, **values)


async def written(folder: Path, flows: Any, epoch: int) -> None:
    """What a process leaves that ran at `epoch`."""
    archive = history(folder, flows, epoch)
    await archive.flush()
    archive.close()


async def answer(flows: Any, archive: History, *allow: pb.FlowFilter, window: Window | None = None) -> list[bytes]:
    """All that a request gets."""
    renderer = Renderer(flows.store.dictionaries, "1", details=True)
    found = past(flows.store, archive, renderer, Filters(allow), window or Window())
    return [response.SerializeToString(deterministic=True) async for response in found]


def fill(flows: Any, rows: int, seed: int = 7) -> None:
    """Rows of every kind, of two nodes, in an order of time that is not quite theirs."""
    choose = random.Random(seed)
    nearest = NearestRule(PolicyRef("NetworkPolicy", "default", "np", "uid", "spec.ingress[0]", 9), ("port",))
    for number in range(rows):
        node = choose.choice((OTHER, NodeRef("node1", labels=("kubernetes.io/hostname=node1",))))
        time = START + number * 10**6 - choose.randrange(5 * 10**6)
        match choose.randrange(5):
            case 0:
                flows.drop(node=node, time_ns=time, policy=Decision(False, (flows.policy,), nearest))
            case 1:
                trace = {"trace_high": choose.getrandbits(64), "trace_low": 1 << 63, "parent_span": 9, "trace_flags": 1}
                flows.http(f"/users/{choose.randrange(9)}", node=node, time_ns=time, status=403, **trace)
            case 2:
                flows.add(node=node, time_ns=time, kind=Kind.CLOSE, bytes=choose.randrange(1 << 40), packets=70_000)
            case 3:
                service = ServiceRef("default", f"web{choose.randrange(3)}")
                process = ProcessRef(choose.randrange(9), "curl", "/usr/bin/curl", "ab")
                flows.allow(node=node, time_ns=time, service=service, rtt_us=choose.randrange(300), process=process)
            case _:
                where = flows.store.node(node)
                flows.store.append_lost(where, 1, choose.randrange(2), 5, time - 100, time)


async def test_a_restarted_process_answers_as_the_first_did(tmp_path: Path, new_flows: Callable[[int], Any]) -> None:
    before = new_flows(1 << 16)
    fill(before, 900)
    first = history(tmp_path, before)
    expected = await answer(before, first)
    assert len(expected) == 900
    await first.flush()
    first.close()
    after = new_flows(1 << 16)
    again = history(tmp_path, after, START + 2 * HOUR)
    assert await answer(after, again) == expected
    drops = pb.FlowFilter(verdict=[pb.DROPPED], source_pod=["default/client"])
    assert await answer(after, again, drops) == await answer(before, first, drops)
    assert await answer(after, again, window=Window(number=20)) == await answer(before, first, window=Window(number=20))
    again.close()
    assert not after.store.dictionaries.parties, "what only a query needed is forgotten after it"


async def test_memory_and_disk_together_hold_every_row_once(tmp_path: Path, new_flows: Callable[[int], Any]) -> None:
    everything, small = new_flows(1 << 16), new_flows(1024)
    archive = history(tmp_path, small)
    for seed in range(20):
        fill(everything, 300, seed)
        fill(small, 300, seed)
        await archive.flush()
    assert small.store.first > 0
    assert archive.figures.unwritten == 0
    assert archive.figures.rows == 6000
    nothing = history(tmp_path / "other", everything)
    assert await answer(small, archive) == await answer(everything, nothing)
    window = Window(since_ns=START + 50 * 10**6, until_ns=START + 90 * 10**6)
    assert await answer(small, archive, window=window) == await answer(everything, nothing, window=window)


async def test_the_growing_segment_has_one_file(tmp_path: Path, flows: Any) -> None:
    archive = history(tmp_path, flows)
    for _ in range(3):
        flows.add()
        await archive.flush()
    assert [found.rows for found in files.listing(tmp_path)] == [3]
    await archive.flush()  # nothing is new: nothing is written
    assert archive.figures.rows == 3


async def test_rows_that_memory_lost_before_they_were_written_are_counted(
    tmp_path: Path, new_flows: Callable[[int], Any]
) -> None:
    flows = new_flows(1024)
    archive = history(tmp_path, flows)
    for _ in range(3000):
        flows.add()
    await archive.flush()
    assert archive.figures.unwritten == flows.store.first > 0
    assert archive.figures.unwritten + archive.figures.rows == 3000


async def test_a_write_cut_short_leaves_nothing_and_is_done_again(tmp_path: Path, flows: Any) -> None:
    flows.add()
    (tmp_path / "flows-1-2-3-4-5.parquet.part").write_bytes(b"half")
    archive = history(tmp_path, flows)
    assert [path.name for path in tmp_path.iterdir()] == [files.LOCK]
    away = tmp_path.rename(tmp_path.with_name("away"))  # the disk is gone for a while
    await archive.flush()
    assert (archive.figures.failures, archive.figures.files) == (1, 0)
    away.rename(tmp_path)
    await archive.flush()
    assert (archive.figures.failures, archive.figures.rows) == (1, 1)


def test_of_two_copies_of_a_segment_the_longer_counts(tmp_path: Path) -> None:
    for rows in (3, 9, 5):
        (tmp_path / files.name_of(10, 20, 1, 0, rows)).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("kept")
    assert [found.rows for found in files.listing(tmp_path)] == [9]
    os.close(files.claim(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [files.LOCK, "flows-10-20-1-0-9.parquet", "notes.txt"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign", "numbers"])
async def test_a_damaged_file_is_set_aside_and_the_others_answer(
    tmp_path: Path, damage: str, new_flows: Callable[[int], Any]
) -> None:
    first, second = new_flows(4096), new_flows(4096)
    fill(first, 200)
    await written(tmp_path, first, START + HOUR)
    fill(second, 40, seed=8)
    await written(tmp_path, second, START + 2 * HOUR)
    path = files.listing(tmp_path)[0].path
    content = bytearray(path.read_bytes())
    match damage:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "flip":
            for place in range(16, len(content) // 2, 97):
                content[place] ^= 0x55
            path.write_bytes(content)
        case "empty":
            path.write_bytes(b"")
        case "foreign":
            pq.write_table(pq.read_table(path).replace_schema_metadata({b"made by": b"others"}), path)
        case "numbers":
            table = pq.read_table(path)
            wrong = np.full(len(table), 1 << 20, np.uint32)
            place = table.column_names.index("_source")
            pq.write_table(table.set_column(place, "_source", [wrong]), path)
    third = new_flows(4096)
    archive = history(tmp_path, third, START + 3 * HOUR)
    assert len(await answer(third, archive)) == 40
    assert archive.figures.broken == 1
    assert path.with_name(path.name + files.BROKEN).exists()
    assert len(await answer(third, archive)) == 40


async def test_the_oldest_go_first_by_age_and_by_size(tmp_path: Path, new_flows: Callable[[int], Any]) -> None:
    flows = new_flows(1024)
    archive = history(tmp_path, flows)
    for seed in range(8):
        fill(flows, 250, seed)
        await archive.flush()
    present = files.listing(tmp_path)
    archive.close()
    sizes = sum(found.size for found in present)
    limited = history(tmp_path, new_flows(1024), max_bytes=sizes // 2)
    await limited.flush()
    limited.close()
    left = files.listing(tmp_path)
    assert left == present[-len(left) :]
    assert (
        sum(found.size for found in left)
        <= sizes // 2
        < sum(found.size for found in left) + present[-len(left) - 1].size
    )
    aged = history(tmp_path, new_flows(1024), START + 2 * HOUR, max_age_s=3600)
    await aged.flush()
    assert not files.listing(tmp_path)
    assert aged.figures.expired == len(left)


async def test_people_and_other_tools_find_words_in_the_file(tmp_path: Path, flows: Any) -> None:
    flows.drop()
    trace = {"trace_high": 0x4BF9 << 48, "trace_low": (1 << 64) - 1, "parent_span": 0xAB}
    flows.http("/api/v1/users", service=ServiceRef("default", "web"), **trace)
    await history(tmp_path, flows).flush()
    rows = pq.read_table(files.listing(tmp_path)[0].path).to_pylist()
    assert [row["verdict"] for row in rows] == ["DROPPED", "FORWARDED"]
    assert [row["drop_reason"] for row in rows] == ["POLICY_DENIED", None]
    assert [row["http_path"] for row in rows] == [None, "/api/v1/users"]
    assert rows[1]["service_name"] == "web"
    assert {row["source_pod"] for row in rows} == {"client"}
    assert {row["destination_ip"] for row in rows} == {"10.0.0.2"}
    assert {row["source_labels"] for row in rows} == {"k8s:app=client,k8s:role=frontend"}
    assert rows[0]["policies"] == "CiliumNetworkPolicy default/deny-all-ingress-to-webapp"
    assert {row["node"] for row in rows} == {"node1"}
    assert [row["trace_id"] for row in rows] == [None, "4bf9000000000000ffffffffffffffff"]
    assert [row["parent_span_id"] for row in rows] == [None, "00000000000000ab"]


async def test_files_of_earlier_versions_lack_columns(tmp_path: Path, flows: Any) -> None:
    flows.http()
    archive = history(tmp_path, flows)
    expected = await answer(flows, archive)
    await archive.flush()
    archive.close()
    (file,) = files.listing(tmp_path)
    table = pq.read_table(file.path)
    later = ("_trace_high", "_trace_low", "_parent_span", "trace_flags", "trace_id", "parent_span_id")
    pq.write_table(table.drop_columns(later), file.path, write_page_checksum=True)
    again = history(tmp_path, flows, START + 2 * HOUR)
    flows.store.segments.clear()
    flows.store.end = 0
    assert await answer(flows, again) == expected
    assert await answer(flows, again, pb.FlowFilter(trace_id=[""])) == expected
    again.close()


def test_full_segments_take_little_and_say_the_same(new_flows: Callable[[int], Any]) -> None:
    flows = new_flows(4096)
    fill(flows, 256)
    whole = {name: values.copy() for name, values in flows.store.segments[0].columns.items()}
    flows.add()  # the next segment begins: the first is sealed
    sealed = flows.store.segments[0].columns
    assert all((sealed[name] == whole[name]).all() for name in STORED)
    assert sum(values.strides[0] for values in sealed.values()) <= 64


def test_a_folder_that_cannot_be_used_is_an_error_with_its_name(tmp_path: Path, flows: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"history_dir .*file"):
        open_history(str(tmp_path / "file"), flows.store, max_mb=16, max_age_s=1)
    with pytest.raises(Unavailable, match="no absolute path"):
        open_history("flows", flows.store, max_mb=16, max_age_s=1)
    first = open_history(str(tmp_path / "ours"), flows.store, max_mb=16, max_age_s=1)
    with pytest.raises(Unavailable, match="another relay writes there"):
        open_history(str(tmp_path / "ours"), flows.store, max_mb=16, max_age_s=1)
    assert first is not None
    first.close()
    assert open_history("", flows.store, max_mb=16, max_age_s=1) is None
