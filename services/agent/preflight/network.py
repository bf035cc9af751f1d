"""Hooks and devices by trying, with the agent's own code, in a network namespace that ends with this process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from services.agent.datapath import attach, cgroup, syscall
from services.agent.datapath.units import SOCKET_HOOKS, TC, AttachType, Kind, ProgramType
from services.agent.datapath.watch import WatchHooks
from services.agent.datapath.xdp import Mode, XdpHooks
from services.agent.preflight.findings import Finding, judged
from services.agent.preflight.kernel import ALLOW, PASS
from services.common.errors import CiliateError

AREA = "network"
_PORT = 8472
_TC_PROGRAMS = ("from_endpoint", "to_endpoint", "from_watched", "to_watched")
_XDP_PASS = b"\xb7\x00\x00\x00\x02\x00\x00\x00" + b"\x95" + bytes(7)
"""Returns XDP_PASS."""


async def probe(root: Path, cgroup_root: str) -> AsyncIterator[Finding]:
    """Everything that hangs on interfaces and cgroups. `root`: an empty folder of a BPF file system."""
    problem = await _said(lambda: _pin(root))
    yield judged(AREA, "BPF file system", problem, needed=True, fix="mount it: mount bpffs /sys/fs/bpf -t bpf")
    async with attach.netlink() as ipr:
        problem = await _said(lambda: ipr.link("add", ifname="probe0", kind="veth", peer={"ifname": "probe1"}))
        yield judged(AREA, "veth", problem, needed=True, fix="modprobe veth")
        if problem:
            return
        index = int((await ipr.link_lookup(ifname="probe0"))[0])
    yield await _tried("tc programs (clsact, direct action)", lambda: attach.attach_endpoint(index, root / "progs"))
    hooks = XdpHooks(root, Mode.GENERIC)
    yield judged(
        AREA, "XDP", await _said(lambda: _now(lambda: hooks.attach([index]))), needed=False, fix="set xdp: off"
    )
    yield await _tried("VXLAN with external metadata", lambda: attach.ensure_vxlan(port=_PORT), "modprobe vxlan")
    queue = await _said(lambda: attach.queues_by_departure(index, install=True))
    yield judged(AREA, "queue fq", queue, needed=False, fix="lost: bandwidth limits by departure time; modprobe sch_fq")
    watch = WatchHooks(root / "progs", ["probe0"])
    watch.follow()
    problem = watch.problems.get("probe0", "")
    watch.close()
    lost = "lost: observe_only; pods' packets take 90 ns longer"
    yield judged(AREA, "programs in front of others (tcx)", problem, needed=False, fix=lost)
    yield _ipv6()
    problem, where = _sockets(cgroup_root)
    yield judged(AREA, "socket hooks (cgroup2)", problem, needed=False, detail=where, fix="set socket_lb: off")


async def _tried(name: str, attempt: Callable[[], Awaitable[Any]], fix: str = "") -> Finding:
    return judged(AREA, name, await _said(attempt), needed=True, fix=fix)


async def _said(attempt: Callable[[], Awaitable[Any]]) -> str:
    try:
        await attempt()
    except NetlinkError as error:
        return os.strerror(error.code)
    except (OSError, CiliateError) as error:
        return str(error).partition("\n")[0]
    return ""


async def _now(attempt: Callable[[], object]) -> None:
    attempt()


async def _pin(root: Path) -> None:
    (root / "progs").mkdir(parents=True)
    xdp = Kind(ProgramType.XDP, AttachType.XDP)
    wanted = {**dict.fromkeys(_TC_PROGRAMS, (PASS, TC)), "xdp_netdev": (_XDP_PASS, xdp)}
    for name, (code, kind) in wanted.items():
        fd = syscall.prog_load(name, code, kind)
        try:
            syscall.obj_pin(fd, root / "progs" / name)
        finally:
            os.close(fd)


def _ipv6() -> Finding:
    present = Path("/proc/sys/net/ipv6/conf/all/forwarding").exists()
    return judged(
        AREA, "IPv6", "" if present else "this kernel has none", needed=False, fix="lost: pods' IPv6 addresses"
    )


def _sockets(cgroup_root: str) -> tuple[str, str]:
    """(what is wrong, where they go). A program that allows everything is on the tree for a moment, by its link."""
    try:
        where = Path(cgroup_root) if cgroup_root else cgroup.whole_tree()
        directory = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, CiliateError) as error:
        return str(error), ""
    try:
        for name, kind in SOCKET_HOOKS.items():
            program = syscall.prog_load(name, ALLOW, kind)
            try:
                os.close(syscall.link_create(program, directory, kind))
            finally:
                os.close(program)
    except OSError as error:
        return f"{where}: {error.strerror}", str(where)
    finally:
        os.close(directory)
    return "", str(where)
