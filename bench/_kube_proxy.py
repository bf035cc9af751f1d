"""kube-proxy's rules for a list of Services, as its two modes write them, for comparison.

iptables: one rule per Service in KUBE-SERVICES, walked one after the other; KUBE-SVC-* chooses an endpoint by
`statistic --mode random`, KUBE-SEP-* marks hairpins and translates. nftables: one verdict map of all Services, one more
per Service over `numgen random`. Names of chains, marks and masquerading are kube-proxy's. Each class sets a namespace
up, and changes the endpoints of one Service as a partial sync does: the chains of that Service alone, though
kube-proxy's iptables mode writes all of KUBE-SERVICES again each time, which would only be slower.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

POD_RANGE = "10.244.0.0/16"
MARK = "0x4000"
TRANSACTION = 2000


@dataclass(frozen=True, slots=True)
class Service:
    """A ClusterIP with TCP endpoints ("address:port")."""

    name: str
    address: str
    port: int
    endpoints: tuple[str, ...]


def run(command: Sequence[str], netns: str, text: str) -> float:
    """Feed a program inside a namespace; seconds. Raises with what it said."""
    full = ["nsenter", f"--net=/run/netns/{netns}", *command]
    started = time.perf_counter()
    done = subprocess.run(full, input=text, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return time.perf_counter() - started


def digest(*parts: str) -> str:
    """What kube-proxy names chains by."""
    return base64.b32encode(hashlib.sha256("".join(parts).encode()).digest()).decode()[:16]


class Iptables:
    """Mode iptables. `flavour`: "iptables" is the system's default, "iptables-legacy" the old kernel interface."""

    def __init__(self, netns: str, flavour: str = "iptables") -> None:
        self._netns, self._restore = netns, f"{flavour}-restore"

    def install(self, services: Sequence[Service]) -> None:
        """Everything, replacing what was there."""
        chains: list[str] = []
        jumps: list[str] = []
        rules: list[str] = []
        for service in services:
            jumps.append(self._jump(service))
            named, written = self._chains(service)
            chains += named
            rules += written
        nat = [
            "*nat",
            *(f":{name} - [0:0]" for name in ("KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-NODEPORTS")),
            *(f":{name} - [0:0]" for name in chains),
            '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
            '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
            '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
            f"-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}",
            f"-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN",
            f"-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}",
            '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT"'
            " -j MASQUERADE --random-fully",
            *jumps,
            '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in'
            ' this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
            *rules,
            "COMMIT",
        ]
        run([self._restore], self._netns, "\n".join([*_FILTER, *nat, ""]))

    def update(self, service: Service) -> float:
        """The chains of one Service again; seconds."""
        chains, rules = self._chains(service)
        text = ["*nat", *(f":{name} - [0:0]" for name in chains), *rules, "COMMIT", ""]
        return run([self._restore, "--noflush"], self._netns, "\n".join(text))

    @staticmethod
    def _chain(service: Service) -> str:
        return f"KUBE-SVC-{digest(service.name, 'tcp')}"

    def _jump(self, service: Service) -> str:
        return (
            f'-A KUBE-SERVICES -m comment --comment "{service.name} cluster IP" -m tcp -p tcp -d {service.address}/32'
            f" --dport {service.port} -j {self._chain(service)}"
        )

    def _chains(self, service: Service) -> tuple[list[str], list[str]]:
        chain, count = self._chain(service), len(service.endpoints)
        chains = [chain]
        rules = [
            f'-A {chain} -m comment --comment "{service.name} cluster IP" -m tcp -p tcp -d {service.address}/32'
            f" --dport {service.port} ! -s {POD_RANGE} -j KUBE-MARK-MASQ"
        ]
        for index, endpoint in enumerate(service.endpoints):
            target = f"KUBE-SEP-{digest(service.name, 'tcp', endpoint)}"
            chains.append(target)
            chance = (
                f"-m statistic --mode random --probability {1 / (count - index):.10f} " if index < count - 1 else ""
            )
            address = endpoint.rpartition(":")[0]
            rules += [
                f'-A {chain} -m comment --comment "{service.name} -> {endpoint}" {chance}-j {target}',
                f'-A {target} -m comment --comment "{service.name}" -s {address}/32 -j KUBE-MARK-MASQ',
                f'-A {target} -m comment --comment "{service.name}" -m tcp -p tcp -j DNAT --to-destination {endpoint}',
            ]
        return chains, rules


_FILTER = [
    "*filter",
    *(f":{name} - [0:0]" for name in ("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS")),
    ":KUBE-PROXY-FIREWALL - [0:0]",
    "-A INPUT -m conntrack --ctstate NEW -m comment"
    ' --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL',
    '-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
    "-A INPUT -m conntrack --ctstate NEW -m comment"
    ' --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
    "-A FORWARD -m conntrack --ctstate NEW -m comment"
    ' --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL',
    '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
    '-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    "-A FORWARD -m conntrack --ctstate NEW -m comment"
    ' --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
    "-A OUTPUT -m conntrack --ctstate NEW -m comment"
    ' --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL',
    '-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
    f'-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark {MARK}/{MARK} -j ACCEPT',
    '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule"'
    " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "COMMIT",
]


class Nftables:
    """Mode nftables: one table, `ip kube-proxy`."""

    def __init__(self, netns: str) -> None:
        self._netns = netns

    def install(self) -> None:
        """The table, without Services."""
        run(["nft", "-f", "-"], self._netns, "table ip kube-proxy\ndelete table ip kube-proxy\n" + _NFT_BASE)

    def add(self, services: Sequence[Service]) -> None:
        """More Services, in transactions of a size that nft handles fastest."""
        for start in range(0, len(services), TRANSACTION):
            part = services[start : start + TRANSACTION]
            lines = [line for service in part for line in self._chains(service)]
            elements = ", ".join(f"{s.address} . tcp . {s.port} : goto {self._chain(s)}" for s in part)
            lines.append(f"add element ip kube-proxy service-ips {{ {elements} }}")
            lines.append(f"add element ip kube-proxy cluster-ips {{ {', '.join(s.address for s in part)} }}")
            run(["nft", "-f", "-"], self._netns, "\n".join([*lines, ""]))

    def update(self, service: Service) -> float:
        """The chains of one Service again; seconds."""
        return run(["nft", "-f", "-"], self._netns, "\n".join([*self._chains(service, flush=True), ""]))

    @staticmethod
    def _chain(service: Service) -> str:
        return f"service-{digest(service.name, 'tcp')}-{service.name.replace(':', '/tcp/')}"

    def _chains(self, service: Service, flush: bool = False) -> list[str]:
        chain = self._chain(service)
        names = [f"endpoint-{digest(service.name, e)}-{chain[25:]}__{e.replace(':', '/')}" for e in service.endpoints]
        lines = []
        for name in [chain, *names]:
            lines.append(f"add chain ip kube-proxy {name}")
            if flush:
                lines.append(f"flush chain ip kube-proxy {name}")
        choice = ", ".join(f"{index} : goto {name}" for index, name in enumerate(names))
        lines += [
            f"add rule ip kube-proxy {chain} ip daddr {service.address} tcp dport {service.port}"
            f" ip saddr != {POD_RANGE} jump mark-for-masquerade",
            f"add rule ip kube-proxy {chain} numgen random mod {len(names)} vmap {{ {choice} }}",
        ]
        for name, endpoint in zip(names, service.endpoints, strict=True):
            address = endpoint.rpartition(":")[0]
            lines += [
                f"add rule ip kube-proxy {name} ip saddr {address} jump mark-for-masquerade",
                f"add rule ip kube-proxy {name} meta l4proto tcp dnat to {endpoint}",
            ]
        return lines


_NFT_BASE = """
table ip kube-proxy {
  set cluster-ips { type ipv4_addr; }
  set nodeport-ips { type ipv4_addr; elements = { 192.168.77.250 } }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-nodeports { type inet_proto . inet_service : verdict; }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  chain mark-for-masquerade { mark set mark or 0x4000; }
  chain masquerading { mark and 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
  chain cluster-ips-check { ip daddr @cluster-ips reject; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain filter-prerouting-pre-dnat { type filter hook prerouting priority -110; ct state new jump firewall-check; }
  chain filter-forward {
    type filter hook forward priority -110;
    ct state new jump service-endpoints-check; ct state new jump cluster-ips-check;
  }
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
}
"""
