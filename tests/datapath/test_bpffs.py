"""The BPF file system is mounted once, however many agents begin at the same moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

PROGRAM = """
import sys, time
from multiprocessing import Barrier, Process
from pathlib import Path
from services.agent.datapath import bpffs

place = Path(sys.argv[1])
there = bpffs.mounted


def slowly(path):
    found = there(path)
    time.sleep(0.05)  # time for the others to look, too
    return found


def begin(barrier):
    bpffs.mounted = slowly
    barrier.wait()
    bpffs.ensure_bpffs(place / "ciliate", place)
    (place / "ciliate").mkdir(exist_ok=True)


barrier = Barrier(4)
agents = [Process(target=begin, args=(barrier,)) for _ in range(4)]
for agent in agents:
    agent.start()
for agent in agents:
    agent.join()
mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
print(mounts.count(str(place)), (place / "ciliate").is_dir(), [agent.exitcode for agent in agents])
"""


def test_agents_that_begin_together_do_not_mount_over_one_another(tmp_path: Path) -> None:
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "1 True [0, 0, 0, 0]"
