"""What touches the machine: names and paths, the process ledger, the network, sockets inside namespaces."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from services.cli import connect
from services.common.errors import CiliateError, Invalid
from services.sandbox import netns, state
from services.sandbox.probes import NO_ANSWER, NO_CONNECTION, read_curl
from services.sandbox.processes import Processes, end_recorded, recorded
from services.sandbox.supervisor import uninterrupted

PREFIX = f"clt-u{os.getpid()}."


@pytest.mark.parametrize("name", ["", "A", "a/b", "a.b", "-a", "x" * 25, "a b"])
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="sandbox name"):
        state.check_name(name)


def test_one_sandboxs_prefix_is_never_the_start_of_anothers() -> None:
    assert not state.Paths("a-b").netns_prefix.startswith(state.Paths("a").netns_prefix)


def test_a_process_is_known_by_number_and_start_time() -> None:
    assert state.start_time(os.getpid()) is not None
    with subprocess.Popen(["true"]) as child:
        child.wait()
    assert state.start_time(child.pid) is None


def test_the_state_file_round_trips(tmp_path: Path) -> None:
    node = state.NodeState("node1", "ns", "a.sock", "h.sock", "/sys/fs/bpf/x")
    begun = state.start_time(os.getpid()) or 0
    saved = state.SandboxState("t", os.getpid(), begun, "c.sock", nodes=(node,))
    saved.save(tmp_path / "sandbox.json")
    assert saved.alive
    assert not state.SandboxState("t", os.getpid(), begun + 1, "c.sock").alive
    assert (tmp_path / "sandbox.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[1]", b"null", b'{"a": 1}', b'{"nodes": [1]}', b"\xff"])
def test_a_state_file_that_was_cut_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(state, "RUN_ROOT", tmp_path)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "sandbox.json").write_bytes(text)
    with pytest.raises(Invalid, match=r"sandbox\.json: not readable: .*; remove .* and start again"):
        state.load("t")


def test_who_may_not_read_a_state_file_is_told_so_and_not_to_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object, **_options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(state, "RUN_ROOT", tmp_path)
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(Invalid, match="only root may use the sandbox's sockets"):
        connect.find(connect.Settings())


async def test_the_ledger_ends_what_was_left_and_spares_reused_numbers(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "ledger", tmp_path / "logs")
    child = await processes.start("sleeper", ["sleep", "60"])
    with (tmp_path / "ledger").open("a") as file:
        file.write(f"{os.getpid()} 1 not-us\ngarbage\n")
    assert len(recorded(tmp_path / "ledger")) == 2
    assert end_recorded(tmp_path / "ledger") == 1
    assert await asyncio.wait_for(child.process.wait(), 5.0) == -9


async def test_children_end_with_their_starter_politely_or_not(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "ledger", tmp_path / "logs")
    polite = await processes.start("polite", ["sleep", "60"])
    stubborn = await processes.start("stubborn", ["sh", "-c", "trap '' TERM; echo here; while :; do sleep 0.1; done"])
    async with asyncio.timeout(5.0):
        while "here" not in stubborn.tail():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    await processes.stop(polite, stubborn, grace=0.2)
    assert (polite.process.returncode, stubborn.process.returncode) == (-15, -9)


async def test_cleaning_up_goes_on_when_it_is_interrupted_twice() -> None:
    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.set()

    task = asyncio.create_task(uninterrupted(work()))
    for _ in range(2):
        await asyncio.sleep(0.01)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


@pytest.mark.parametrize(
    ("status", "line", "expected"),
    [
        (0, "200 0.001 0.004 0.001 nginx/1.22.1", "200"),
        (0, "403 0.001 0.002 0.000 ", "403 by the kernel"),
        (0, "403 0.001 0.002 0.000 nginx/1.22.1", "403"),
        (28, "000 0.000000 1.001 0.000 ", NO_CONNECTION),
        (28, "000 0.000400 2.501 0.000 ", NO_ANSWER),
        (7, "000 0.000000 0.001 0.000 ", "curl: (7) Failed to connect"),
        (6, "", "curl: (7) Failed to connect"),
    ],
)
def test_curls_report_in_a_word(status: int, line: str, expected: str) -> None:
    assert read_curl(status, line, "curl: (7) Failed to connect\n").text == expected


def test_the_network_plan_gives_every_node_its_own_addresses() -> None:
    topology = netns.plan("clt-x.", 3)
    for field in ("name", "netns", "address4", "address6", "pod_cidr4", "pod_cidr6"):
        assert len({getattr(node, field) for node in topology.nodes}) == 3
    with pytest.raises(Invalid, match="choose 1 to 100"):
        netns.plan("clt-x.", 0)


@pytest.mark.root
async def test_nodes_reach_each_other_and_the_world_in_both_families_and_nothing_stays() -> None:
    topology = netns.plan(PREFIX, 2)
    sockets = netns.SocketMaker()
    try:
        await netns.build(topology)
        pings = [f"ping -c1 -W2 {there}" for there in ("172.30.0.2", "fd00:172:30::2", netns.WORLD4, netns.WORLD6)]
        await netns.in_netns(topology.nodes[0].netns, "\n".join(pings))
        with (
            await sockets.make(topology.nodes[1].netns) as server,
            await sockets.make(topology.nodes[0].netns) as client,
        ):
            server.bind(("172.30.0.2", 7))
            server.listen()
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(client, ("172.30.0.2", 7)), 5.0)
        with pytest.raises(CiliateError, match="No such file"):
            await sockets.make(f"{PREFIX}nowhere")
    finally:
        sockets.close()
        await netns.destroy(PREFIX)
    assert netns.existing(PREFIX) == []
