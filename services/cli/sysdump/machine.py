"""What a node itself says: kernel, links, routes, tc, rules, settings, logs, configuration. Commands only read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli.sysdump.collector import Collector
from services.common.errors import NotFound, Unavailable
from services.sandbox import state

_PIECE = 256 << 10
TAIL = 4 << 20
"""Bytes of a log's end."""

_NETWORK: dict[str, str] = {
    "links": "ip -d -s link show",
    "addresses": "ip address show",
    "routes": "ip rule show; ip route show table all; ip -6 rule show; ip -6 route show table all",
    "neighbours": "ip neighbour show; ip -6 neighbour show",
    "tc": "tc -s qdisc show; for link in $(ls /sys/class/net; ip -o link show | cut -d: -f2 | cut -d@ -f1); do "
    'for hook in ingress egress; do echo "== $link $hook"; tc -s filter show dev $link $hook 2>/dev/null; done; done',
    "tcx": f"{sys.executable} -m services.agent.datapath.tcx",
    "rules": "nft list ruleset; iptables-save 2>/dev/null | head -2000",
    "sockets": "ss -tuanp | head -5000",
    "conntrack": "cat /proc/net/nf_conntrack 2>/dev/null | head -2000",
    "settings": "sysctl -a 2>/dev/null | grep -E '^(net\\.(ipv4|ipv6|core)|kernel\\.(unprivileged_bpf|osrelease))'",
}
_MACHINE: dict[str, str] = {
    "kernel": "uname -a; cat /proc/cmdline; zcat /proc/config.gz 2>/dev/null | grep -E 'BPF|NET_(CLS|SCH)|VXLAN|XDP'",
    "memory": "cat /proc/meminfo; cat /proc/pressure/* 2>/dev/null",
    "processors": "cat /proc/loadavg; grep -E 'model name|flags' /proc/cpuinfo | sort | uniq -c; head -1 /proc/stat",
    "processes": "ps -eo pid,etimes,rss,nlwp,pcpu,args --sort=-rss | grep -E 'PID|ciliate|services|etcd' | head -200",
    "mounts": "cat /proc/self/mounts",
    "kernel-log": "dmesg 2>/dev/null | tail -2000",
    "pins": "find /sys/fs/bpf -xdev -maxdepth 6 2>/dev/null | head -5000",
    "programs": "command -v bpftool >/dev/null && { bpftool prog; bpftool net; bpftool cgroup tree; } || true",
    "cni": 'for file in /etc/cni/net.d/*; do echo "== $file"; cat "$file"; done 2>/dev/null',
}


@dataclass(frozen=True, slots=True)
class NodePlace:
    """A node on this machine: its network ("" = the machine's own), and where its agent keeps itself."""

    name: str
    netns: str = ""
    run_dir: str = ""


def collectors(nodes: Sequence[NodePlace], logs: Iterable[Path], configurations: Iterable[Path]) -> Iterable[Collector]:
    """Commands for the machine and for each node's network; ends of logs; configuration files."""
    for name, script in _MACHINE.items():
        yield Collector(f"machine/{name}.txt", _command(script))
    yield Collector("machine/preflight.json", _program([sys.executable, "-m", "services.agent.preflight"]))
    for node in nodes:
        for name, script in _NETWORK.items():
            yield Collector(f"nodes/{node.name}/network/{name}.txt", _command(script, node.netns))
    for path in logs:
        yield Collector(f"logs/{path.name}", _tail(path))
    for path in configurations:
        yield Collector(f"configuration/{path.name}", _tail(path))


def metrics(name: str, address: str, netns: str) -> Collector:
    """A process's Prometheus page."""
    return Collector(f"metrics/{name}.txt", _program(["curl", "-sS", "-m", "10", f"http://{address}/metrics"], netns))


def _command(script: str, netns: str = "") -> Callable[[], AsyncIterator[str]]:
    return _program(["sh", "-c", script], netns)


def _program(words: Sequence[str], netns: str = "") -> Callable[[], AsyncIterator[str]]:
    inside = ["nsenter", f"--net={state.NETNS_ROOT / netns}", "--", *words] if netns else list(words)
    return lambda: _run(inside)


async def _run(words: Sequence[str]) -> AsyncIterator[str]:
    """A command's output as it comes; ended when nobody wants more of it."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise NotFound(f"{words[0]} is not installed here") from error
    assert process.stdout is not None
    try:
        while piece := await process.stdout.read(_PIECE):
            yield piece.decode(errors="replace")
        if await process.wait() not in (0, 1):
            raise Unavailable(f"{' '.join(words)[:120]}: ended with status {process.returncode}")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what a shell started
            await process.wait()


def _tail(path: Path) -> Callable[[], AsyncIterator[str]]:
    async def read() -> AsyncIterator[str]:
        yield await asyncio.to_thread(_end_of, path)

    return read


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - TAIL, 0))
        return file.read().decode(errors="replace")
