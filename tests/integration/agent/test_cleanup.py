"""`ciliate-agent cleanup` in a namespace: everything of ours goes, everything of others stays, twice is no error."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]
ROOT = Path(__file__).parents[3]
APART = ["unshare", "--net", "--mount", "--", "sh", "-ec"]

# What an agent leaves (its hooks by its own code, its overlay, its routes, pins), and what somebody else has there.
LEAVE = """
import asyncio, os, sys
from pathlib import Path
from services.agent.datapath import attach, syscall
from services.agent.preflight.kernel import PASS
pins = Path(sys.argv[1])
async def main():
    (pins / "progs").mkdir(parents=True)
    for name in ("from_endpoint", "to_endpoint", "from_netdev", "to_netdev", "from_overlay", "to_overlay"):
        fd = syscall.prog_load(name, PASS)
        syscall.obj_pin(fd, pins / "progs" / name)
    async with attach.netlink() as ipr:
        index = {name: (await ipr.link_lookup(ifname=name))[0] for name in ("pod0", "eth0")}
        await attach.attach_endpoint(index["pod0"], pins / "progs")
        attach.advance(index["pod0"], pins / "progs")
        await attach.attach_netdev(index["eth0"], pins / "progs")
        overlay = await attach.ensure_vxlan()
        await attach.attach_overlay(overlay, pins / "progs")
        await ipr.tc("add-filter", "bpf", index=index["eth0"], handle=1, parent=attach.INGRESS, prio=7, fd=fd,
                     name="other_cni", direct_action=True)
asyncio.run(main())
"""
SCRIPT = """
ip link set lo up
ip link add pod0 type veth peer pod1; ip link add eth0 type veth peer eth1
for link in pod0 pod1 eth0 eth1; do ip link set $link up; done
ip addr add 10.0.0.1/24 dev eth0
while mountpoint -q /sys/fs/bpf; do umount -l /sys/fs/bpf; done
PY -m services.agent mount-bpffs
PY - PINS <<'END'
LEAVE
END
ip route add 10.9.0.0/24 dev ciliate_vxlan proto 99
ip route add 10.8.0.0/24 via 10.0.0.2 proto 99 metric 7
ip -6 route add fd00:9::/64 dev eth0 proto 99
ip route add 10.7.0.0/24 via 10.0.0.2
mkdir /sys/fs/bpf/other
PY -m services.agent cleanup OPTIONS > DIR/first
PY -m services.agent cleanup OPTIONS > DIR/second
{ ip -o link; ip route show table all; ip -6 route; for link in pod0 eth0; do for hook in ingress egress; do
  tc filter show dev $link $hook; done; done
  PY -c 'AHEAD'; ls /sys/fs/bpf; } > DIR/left
"""
AHEAD = """import socket
from services.agent.datapath.tcx import Hook, programs
print([programs(index, hook) for index, _ in socket.if_nameindex() for hook in Hook])"""


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Folders as a node has them, with files of ours and of others."""
    names = ("cni_conf_dir", "cni_bin_dir", "run_dir", "cache_dir")
    found = {name: tmp_path / name for name in names}
    for path in found.values():
        path.mkdir()
    conf = found["cni_conf_dir"]
    (conf / "05-ciliate.conflist").write_text(json.dumps({"plugins": [{"type": "ciliate-cni"}]}), encoding="utf-8")
    (conf / "10-other.conflist").write_text(json.dumps({"plugins": [{"type": "bridge"}]}), encoding="utf-8")
    (conf / "20-broken.conflist").write_text("not json", encoding="utf-8")
    for name in ("ciliate-cni", "bridge"):
        (found["cni_bin_dir"] / name).write_text("#!/bin/sh\n", encoding="utf-8")
    (found["run_dir"] / "node1").mkdir()
    (found["run_dir"] / "sandbox").mkdir()
    return found


def options(places: dict[str, Path]) -> list[str]:
    return [word for name, path in places.items() for word in (f"--{name.replace('_', '-')}", str(path))]


def test_a_node_is_left_as_it_was(places: dict[str, Path], tmp_path: Path) -> None:
    pins = "/sys/fs/bpf/ciliate"
    script = SCRIPT.replace("PY", sys.executable).replace("PINS", f"{pins}/node1").replace("LEAVE", LEAVE)
    script = script.replace("AHEAD", AHEAD)
    script = script.replace("OPTIONS", " ".join(options(places))).replace("DIR", str(tmp_path))
    done = subprocess.run([*APART, script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "first").read_text(encoding="utf-8")
    for text in (
        *("from_endpoint on pod0", "to_endpoint on pod0", "from_netdev on eth0", "from_overlay on ciliate_vxlan"),
        *("device ciliate_vxlan", "route to 10.8.0.0/24", "route to fd00:9::/64", pins, "05-ciliate.conflist"),
        *("ciliate-cni", "run_dir/node1", "cache_dir"),
    ):
        assert text in first
    assert (tmp_path / "second").read_text(encoding="utf-8") == ""
    left = (tmp_path / "left").read_text(encoding="utf-8")
    for text in ("ciliate", "proto 99", "_endpoint", "_netdev"):
        assert text not in left
    for text in ("other_cni", "10.7.0.0/24", "other\n", "pod0"):
        assert text in left
    kept = sorted(path.name for path in tmp_path.rglob("*") if path.parent.name in places)
    assert kept == ["10-other.conflist", "20-broken.conflist", "bridge", "sandbox"]


def test_not_while_an_agent_runs(places: dict[str, Path]) -> None:
    path = places["run_dir"] / "node1" / "agent.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        words = [sys.executable, "-m", "services.agent", "cleanup", *options(places), "--pins", ""]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert "an agent runs here (node1): it would put everything back; end it first" in done.stderr
    assert (places["cni_conf_dir"] / "05-ciliate.conflist").exists()
