"""Ports -> processes: what the last record says, whose namespace it is, what is known of them, how many are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.agent.abi.process import PROCESS
from services.agent.events import processes
from services.agent.events.inspection import Inspector
from services.agent.events.processes import ProcessTable
from services.flows.columns import Array
from services.flows.dictionary import Dictionaries
from services.flows.entries import ProcessRef

TCP, UDP = 6, 17
COOKIES = {100: 5, 200: 6}


def records(*rows: dict[str, Any]) -> Array:
    found = np.zeros(len(rows), PROCESS)
    for place, row in enumerate(rows):
        for name, value in ({"netns": 100, "pid": 1, "protocol": TCP, "name": b"curl"} | row).items():
            found[name][place] = value
    return found


class Bench:
    def __init__(self) -> None:
        self.dictionaries = Dictionaries()
        self.asked: list[int] = []
        self.cookies = dict(COOKIES)

        def look(pid: int, name: str, cgroup: int) -> ProcessRef:
            self.asked.append(pid)
            return ProcessRef(pid, name, f"/bin/{name}")

        self.table = ProcessTable(self.dictionaries, self.cookies.get, look)

    def find(self, *keys: tuple[int, int, int]) -> list[int]:
        """Pids of (endpoint, port, protocol); 0 = none."""
        columns = [np.array(column, np.uint32) for column in zip(*keys, strict=True)]
        found = [self.dictionaries.processes[number] for number in self.table.find(*columns).tolist()]
        return [each.pid if each else 0 for each in found]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_ports_of_endpoints(bench: Bench) -> None:
    bench.table.take(
        records(
            {"port": 80, "pid": 10, "listens": 1},
            {"port": 80, "pid": 11, "listens": 1, "netns": 200},
            {"port": 40000, "pid": 12},
            {"port": 53, "pid": 13, "listens": 1, "protocol": UDP},
        )
    )
    asked = [(5, 80, TCP), (6, 80, TCP), (5, 40000, TCP), (5, 53, UDP), (5, 53, TCP), (7, 80, TCP), (5, 8, 1)]
    assert bench.find(*asked) == [10, 11, 12, 13, 0, 0, 0]
    assert bench.dictionaries.processes[1] == ProcessRef(10, "curl", "/bin/curl")


def test_the_last_one_who_has_a_port_counts(bench: Bench) -> None:
    bench.table.take(records({"port": 40000, "pid": 1}, {"port": 40000, "pid": 2}))
    assert bench.find((5, 40000, TCP)) == [2]
    bench.table.take(records({"port": 40000, "pid": 3}))
    assert bench.find((5, 40000, TCP)) == [3]


def test_a_server_of_a_pod_that_is_not_known_yet_waits(bench: Bench) -> None:
    bench.table.take(records({"port": 80, "pid": 10, "listens": 1, "netns": 300}, {"port": 9, "pid": 9, "netns": 300}))
    assert bench.find((8, 80, TCP)) == [0]
    bench.cookies[300] = 8
    bench.table.take(records())
    assert bench.find((8, 80, TCP), (8, 9, TCP)) == [10, 0]


def test_what_is_known_is_bounded_and_numbers_are_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "KEPT", 3)
    for pid in range(1, 7):
        bench.table.take(records({"port": pid, "pid": pid}))
    assert len(bench.dictionaries.processes) == 3
    # A number that means another process now is no answer about the old one.
    assert bench.find(*((5, port, TCP) for port in range(1, 7))) == [0, 0, 0, 4, 5, 6]


def test_few_are_looked_at_when_many_start_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "INSPECTED_PER_BATCH", 2)
    bench.table.take(records(*({"port": pid, "pid": pid} for pid in (1, 2, 3, 4))))
    assert bench.asked == [1, 2]
    assert bench.find((5, 4, TCP)) == [4]


CONTAINER = "0123456789abcdef" * 4


class Machine:
    """Folders that look like /proc and a cgroup tree."""

    def __init__(self, root: Path) -> None:
        self.proc, self.tree = root / "proc", root / "cgroup"
        self.tree.mkdir()
        self.now = 0.0
        self.inspector = Inspector(self.tree, self.proc, lambda: self.now)

    def cgroup(self, name: str, *pids: int) -> int:
        place = self.tree / name
        place.mkdir(parents=True)
        (place / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return place.stat().st_ino

    def process(self, pid: int, name: str) -> None:
        place = self.proc / str(pid)
        place.mkdir(parents=True)
        (place / "comm").write_text(f"{name}\n")
        (place / "exe").symlink_to(f"/usr/bin/{name}")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_process_of_our_namespace(machine: Machine) -> None:
    cgroup = machine.cgroup(f"kubepods/pod1/cri-containerd-{CONTAINER}.scope", 42)
    machine.process(42, "curl")
    assert machine.inspector.inspect(42, "curl", cgroup) == ProcessRef(42, "curl", "/usr/bin/curl", CONTAINER)
    assert machine.inspector.inspect(42, "wget", cgroup) == ProcessRef(42, "wget", "", CONTAINER)  # another's now
    assert machine.inspector.inspect(43, "curl", 1) == ProcessRef(43, "curl")
    assert Inspector(None, machine.proc).inspect(42, "curl", 0) == ProcessRef(42, "curl", "/usr/bin/curl")


def test_a_process_of_a_namespace_below_is_found_in_its_cgroup(machine: Machine) -> None:
    cgroup = machine.cgroup("pod", 0, 71, 70, 72)
    for pid, name in ((70, "sh"), (71, "nginx"), (72, "nginx")):
        machine.process(pid, name)
    assert machine.inspector.inspect(9001, "nginx", cgroup) == ProcessRef(71, "nginx", "/usr/bin/nginx")
    assert machine.inspector.inspect(9001, "curl", cgroup) == ProcessRef(9001, "curl")


def test_cgroups_that_are_not_known_are_searched_for_now_and_then(machine: Machine) -> None:
    assert machine.inspector.inspect(1, "a", 12345) == ProcessRef(1, "a")
    cgroup = machine.cgroup("late", 5)
    machine.process(5, "a")
    assert machine.inspector.inspect(1, "a", cgroup) == ProcessRef(1, "a")
    machine.now += 1
    assert machine.inspector.inspect(1, "a", cgroup) == ProcessRef(5, "a", "/usr/bin/a")
