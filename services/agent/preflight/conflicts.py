"""Others who would have the same packets: networks of pods, kube-proxy, programs, and what they left. Read only."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from services.agent.datapath import attach
from services.agent.preflight.findings import Finding, judged

AREA = "conflicts"
CNI_DIR = Path("/etc/cni/net.d")
OURS = "ciliate"
_LINKS = {
    "cilium_host": "Cilium",
    "cilium_net": "Cilium",
    "cilium_vxlan": "Cilium",
    "cilium_geneve": "Cilium",
    "flannel.1": "Flannel",
    "cni0": "the bridge plugin",
    "vxlan.calico": "Calico",
    "weave": "Weave Net",
    "kube-bridge": "kube-router",
    "ovn-k8s-mp0": "OVN-Kubernetes",
    "antrea-gw0": "Antrea",
    "kube-ipvs0": "kube-proxy (IPVS)",
}
_PREFIXES = {"cali": "Calico", "lxc": "Cilium", "azv": "Azure CNI", "eni": "AWS VPC CNI"}
_PINS = {"cilium": "Cilium", "tc/globals": "Cilium or Calico", "calico": "Calico"}
_OUR_PROGRAMS = frozenset({"from_endpoint", "to_endpoint", "from_netdev", "to_netdev", "from_overlay", "to_overlay"})


async def probe(sys: Path = Path("/sys"), cni: Path = CNI_DIR) -> list[Finding]:
    """Everything about others."""
    names = sorted(name for _, name in socket.if_nameindex())
    return [
        *cni_configurations(cni),
        links(names),
        pins(sys / "fs/bpf"),
        await _programs(),
        kube_proxy(_rules()),
    ]


def cni_configurations(folder: Path) -> Iterator[Finding]:
    """The container runtime takes the first one by name."""
    paths = sorted(folder.glob("*.conf*")) if folder.is_dir() else []
    others = [path for path in paths if path.suffix in (".conf", ".conflist") and not _is_ours(path)]
    ours = [path for path in paths if _is_ours(path)]
    before = [path.name for path in others if not ours or path.name < ours[0].name]
    problem = f"{', '.join(before)}: of another network, and first" if before else ""
    fix = f"move them away from {folder} when the agent runs, or use --observe-only beside them"
    yield judged(AREA, "CNI configurations", problem, needed=False, fix=fix, detail=", ".join(p.name for p in paths))


def _is_ours(path: Path) -> bool:
    try:
        return OURS in json.dumps(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def links(names: Sequence[str]) -> Finding:
    """Interfaces that others make."""
    found = {name: _LINKS[name] for name in names if name in _LINKS}
    found |= {
        name: who for name in names for prefix, who in _PREFIXES.items() if name.startswith(prefix) and len(name) > 7
    }
    who = sorted(set(found.values()))
    problem = f"{', '.join(who)}: {', '.join(sorted(found)[:5])}" if found else ""
    return judged(AREA, "interfaces of others", problem, needed=False, fix="remove what is left of them: ip link del")


def pins(bpffs: Path) -> Finding:
    """Pinned maps and programs of others."""
    problem = ", ".join(f"{who}: {bpffs / path}" for path, who in _PINS.items() if (bpffs / path).exists())
    return judged(AREA, "pinned programs of others", problem, needed=False, fix="remove them when it is gone")


async def _programs() -> Finding:
    """tc programs that are not ours on the node's devices: those before ours decide first."""
    found = []
    async with attach.netlink() as ipr:
        for link in [each async for each in await ipr.link("dump")]:
            name = str(link.get_attr("IFLA_IFNAME"))
            for parent in (attach.INGRESS, attach.EGRESS):
                programs = await attach.filter_names(ipr, int(link["index"]), parent)
                found += [f"{program} on {name}" for program in programs if program not in _OUR_PROGRAMS]
            xdp = link.get_attr("IFLA_XDP")
            if xdp and xdp.get_attr("IFLA_XDP_ATTACHED"):
                found.append(f"XDP on {name}")
    return judged(
        AREA, "programs of others on devices", ", ".join(found[:5]), needed=False, fix="tc filter show dev NAME ingress"
    )


def kube_proxy(rules: Iterable[str]) -> Finding:
    """Its rules translate what we translate."""
    count = sum("KUBE-SVC-" in line or "KUBE-NODEPORTS" in line or "kube-proxy" in line for line in rules)
    problem = f"{count} rules" if count else ""
    fix = "stop kube-proxy and remove them: kube-proxy --cleanup; or leave Services to it"
    return judged(AREA, "kube-proxy's rules", problem, needed=False, fix=fix)


def _rules() -> list[str]:
    """Rules by nft, which shows those of iptables-nft as well; those of old iptables only where its tables are loaded:
    asking would load them."""
    commands = [["nft", "list", "ruleset"]]
    tables = Path("/proc/net/ip_tables_names")
    if tables.exists() and tables.read_text(encoding="ascii").strip():
        commands.append(["iptables-legacy-save"])
    found: list[str] = []
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        found += done.stdout.splitlines()
    return found
