"""Preflight for real: what this kernel has and what is in the way is found, and nothing stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.agent.datapath.cgroup import whole_tree
from services.agent.datapath.units import TC
from services.agent.preflight import kernel
from services.agent.preflight.findings import Status

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]
ROOT = Path(__file__).parents[3]
APART = ["unshare", "--net", "--mount", "--", "sh", "-ec"]
"""In a network of its own: what the test puts in the way is nobody else's."""


def state() -> tuple[list[str], list[str], list[str]]:
    """Interfaces, pins and cgroups of this machine that preflight could have left."""
    links = sorted(path.name for path in Path("/sys/class/net").iterdir())
    pins = sorted(str(path) for path in Path("/sys/fs/bpf").glob("**/*probe*"))
    groups = sorted(path.name for path in whole_tree().iterdir() if "preflight" in path.name)
    return links, pins, groups


def run(script: str = "") -> tuple[int, dict[str, dict[str, Any]]]:
    command = f"ip link set lo up; {script} exec {sys.executable} -m services.agent.preflight"
    done = subprocess.run([*APART, command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert not done.stderr, done.stderr
    return done.returncode, {f"{each['area']}: {each['name']}": each for each in json.loads(done.stdout)}


@pytest.mark.alone  # it compares all interfaces of the machine
def test_this_machine_would_do_and_stays_as_it_was() -> None:
    before = state()
    status, found = run()
    assert state() == before
    failed = {name: each for name, each in found.items() if each["status"] == "failed"}
    assert (status, failed) == (0, {})
    for name in ("kernel: map LPM_TRIE", "kernel: program connect6", "network: VXLAN with external metadata"):
        assert found[name]["status"] == "ok"
    assert len(found) > 50


def test_what_is_in_the_way_is_found(tmp_path: Path) -> None:
    script = """
    ip link add cilium_host type veth peer cilium_net
    ip link add eth7 type veth peer eth8
    ip link set eth7 up
    nft add table ip nat; nft add chain ip nat KUBE-SVC-TEST; nft add rule ip nat KUBE-SVC-TEST counter
    ip link add blocker type vxlan id 7 dstport 8472 dev eth7
    ip link set blocker up
    """
    status, found = run(script)
    assert found["conflicts: interfaces of others"]["detail"] == "Cilium: cilium_host, cilium_net"
    assert found["conflicts: kube-proxy's rules"]["status"] == "warning"
    assert (status, found["node: UDP port 8472 (overlay)"]["status"]) == (1, "failed")


def test_programs_of_others_on_devices(tmp_path: Path) -> None:
    script = f"""
    ip link add eth7 type veth peer eth8; ip link set eth7 up
    {sys.executable} - <<'END'
import asyncio, os
from services.agent.datapath import attach, syscall
from services.agent.preflight.kernel import PASS
async def main():
    fd = syscall.prog_load("other_cni", PASS)
    async with attach.netlink() as ipr:
        (index,) = await ipr.link_lookup(ifname="eth7")
        await ipr.tc("add", "clsact", index=index)
        await ipr.tc("add-filter", "bpf", index=index, handle=1, parent=attach.INGRESS, prio=1, fd=fd,
                     name="other_cni", direct_action=True)
asyncio.run(main())
END
    """
    _, found = run(script)
    assert found["conflicts: programs of others on devices"]["detail"] == "other_cni on eth7"


def test_a_helper_that_no_kernel_has() -> None:
    assert kernel._helper(9_999, TC) == "this kernel does not have it"
    assert kernel._helper(23, TC) == ""


def test_without_bpf_the_reason_is_told() -> None:
    script = "exec setpriv --bounding-set -sys_admin,-bpf,-perfmon --inh-caps -all --"
    command = f"{script} {sys.executable} -m services.agent.preflight"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert done.returncode == 1
    assert found["namespaces to try things in"]["status"] == Status.FAILED
    assert "root" in found["namespaces to try things in"]["fix"]


def test_the_command_shows_only_what_is_to_be_done() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "preflight"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.stdout.rstrip().splitlines()[-1].startswith("the agent would ")
    assert "map HASH" not in done.stdout
