"""What the node offers: memory, processors, kernel settings, ports, a compiler. Read only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.agent.preflight.findings import Finding, judged

AREA = "node"
MEMORY_MB = 512
"""What the agent and its maps want: 150 MB resident, maps at their default sizes beside it."""
_LISTEN, _ANY_UDP = "0A", "07"


@dataclass(frozen=True, slots=True)
class Wants:
    """Ports that the agent will bind."""

    tunnel_port: int = 8472
    hubble_port: int = 4244
    node_ports: tuple[int, int] = (30000, 32767)
    overlay_device: str = "ciliate_vxlan"


def probe(wants: Wants, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Everything about the node."""
    yield _memory(proc / "meminfo")
    count = os.cpu_count() or 1
    yield judged(AREA, "processors", "" if count > 1 else "only one", needed=False, detail=str(count))
    yield _compiler()
    yield from settings(proc / "sys")
    yield from ports(wants, proc / "net")


def _memory(meminfo: Path) -> Finding:
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    free = int(lines["MemAvailable"].split()[0]) // 1024
    problem = "" if free >= MEMORY_MB else f"{free} MB available, the agent wants {MEMORY_MB}"
    return judged(
        AREA, "memory", problem, needed=False, detail=f"{free} MB available", fix="smaller tables: ct_max, ..."
    )


def _compiler() -> Finding:
    # In a process of its own, as the loader has it: the compiler is 60 MB, and may not be there.
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import bcc"], capture_output=True, text=True, timeout=30, check=False
        )
        problem = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["cannot be loaded"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    return judged(AREA, "compiler (bcc)", problem, needed=True, fix="install python3-bpfcc")


def settings(sysctl: Path) -> Iterator[Finding]:
    """Kernel settings (sysctl) that decide whether packets get through."""

    def value(name: str) -> str:
        try:
            return (sysctl / name).read_text(encoding="ascii").strip()
        except OSError:
            return ""

    strict = [name for name in _names(sysctl / "net/ipv4/conf") if value(f"net/ipv4/conf/{name}/rp_filter") == "1"]
    problem = f"strict on {', '.join(strict)}" if strict else ""
    fix = "sysctl -w net.ipv4.conf.all.rp_filter=0, and of these; or 2"
    yield judged(AREA, "reverse path filter", problem, needed=False, fix=fix)
    for name, family in (("net/ipv4/ip_forward", "IPv4"), ("net/ipv6/conf/all/forwarding", "IPv6")):
        stands = value(name) == "1" or os.access(sysctl / name, os.W_OK)
        problem = "" if stands else f"{name} is {value(name) or 'not there'} and cannot be set"
        yield judged(AREA, f"forwarding of {family}", problem, needed=family == "IPv4", fix=f"sysctl -w {name}=1")
    off = value("net/ipv6/conf/all/disable_ipv6") == "1"
    yield judged(AREA, "IPv6 is on", "disable_ipv6 is 1" if off else "", needed=False, fix="lost: pods' IPv6 addresses")
    interpreted = value("net/core/bpf_jit_enable") == "0"
    fix = "sysctl -w net.core.bpf_jit_enable=1: programs are interpreted, many times slower"
    yield judged(AREA, "eBPF compiler of the kernel (JIT)", "is off" if interpreted else "", needed=False, fix=fix)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def ports(wants: Wants, net: Path) -> Iterator[Finding]:
    """Ports that the agent wants and somebody has; the overlay's is no problem while the overlay is ours."""
    udp = _bound(net, "udp", _ANY_UDP)
    tcp = _bound(net, "tcp", _LISTEN)
    ours = wants.overlay_device in {name for _, name in socket.if_nameindex()}
    taken = wants.tunnel_port in udp and not ours
    fix = "set tunnel_port to a free one, on every node"
    yield judged(AREA, f"UDP port {wants.tunnel_port} (overlay)", "is taken" if taken else "", needed=True, fix=fix)
    taken = wants.hubble_port in tcp
    fix = "is it an agent's? else set hubble_address"
    yield judged(AREA, f"TCP port {wants.hubble_port} (flow API)", "is taken" if taken else "", needed=False, fix=fix)
    first, last = wants.node_ports
    inside = sorted(port for port in udp | tcp if first <= port <= last)
    problem = f"programs listen on {', '.join(map(str, inside[:5]))}" if inside else ""
    yield judged(AREA, f"node ports {first}-{last}", problem, needed=False, fix="Services may get these ports")


def _bound(net: Path, protocol: str, state: str) -> set[int]:
    found = set()
    for path in (net / protocol, net / f"{protocol}6"):
        try:
            lines = path.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue  # a kernel without that family
        found |= {int(line.split()[1].rpartition(":")[2], 16) for line in lines if line.split()[3] == state}
    return found
