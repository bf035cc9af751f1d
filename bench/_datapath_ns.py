"""Nanoseconds per packet by BPF_PROG_TEST_RUN: what the programs cost, without stack, devices or wake-ups.

A test run feeds one packet buffer again and again, but our programs change it (MACs, TTL, addresses). So each run
starts in a small program that puts the packet back, counts its source port up where every packet opens a
connection, and tail-calls the hook. The same with an empty hook is the floor that is subtracted.
"""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from services.agent.abi.config import ConfigFlags
from services.agent.abi.nat import NETDEV_NODE, NetdevInfo
from services.agent.datapath import syscall
from services.agent.datapath.objects import CompiledObject, loads
from services.model.verdict import Direction
from tests.datapath.gateway import expose
from tests.datapath.node import GATEWAY_MAC, TC_ACT_SHOT, WORLD4, Node, Pod, inside, ip, sh, u32

PLACES = 32_768

FEEDER = """
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
struct original { u8 bytes[54]; u16 length; u32 count_up; u32 port; };
BPF_F_TABLE("array", u32, struct original, originals, 1, 0);
BPF_F_TABLE("prog", u32, u32, hook, 1, 0);

int feeder(struct __sk_buff *skb)
{
	u32 zero = 0;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct original *o = originals.lookup(&zero);

	if (!o || data + 54 > end)
		return TC_ACT_SHOT;
	__builtin_memcpy(data, o->bytes, 54);
	if (o->count_up) {
		o->port += 1;
		*(u16 *)(data + 34) = o->port;
		*(u16 *)(data + 32) = o->port >> 16 | *(u16 *)(o->bytes + 32);
	}
	hook.call(skb, 0);
	return TC_ACT_SHOT;
}

int nothing(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}
"""

_COMPILE = """
import sys
from pathlib import Path
from services.agent.datapath.bcc_backend import compile_text
from services.agent.datapath.objects import dumps
from services.agent.datapath.program import SOURCE_DIR
print(dumps(compile_text(sys.stdin.read(), SOURCE_DIR)))
"""


class Feeder:
    """Feeds a hook of a node. `ns` is the median cost of one packet in the hook."""

    def __init__(self, node: Node) -> None:
        self.node = node
        # In a child, as everything that maps LLVM.
        done = subprocess.run(
            [sys.executable, "-c", _COMPILE], input=FEEDER, capture_output=True, text=True, check=True
        )
        compiled: CompiledObject = loads(done.stdout)
        self.maps = {
            m.name: syscall.map_create(m.type, m.key_size, m.value_size, m.max_entries, m.flags, m.name)
            for m in compiled.maps
        }
        self.programs = {p.name: syscall.prog_load(p.name, p.link(self.maps)) for p in compiled.programs}

    def close(self) -> None:
        for fd in (*self.maps.values(), *self.programs.values()):
            os.close(fd)

    def _run(self, target: int, packet: bytes, ifindex: int, count_up: bool, rounds: int, repeat: int) -> list[int]:
        original = packet[:54] + struct.pack("<H", len(packet)) + struct.pack("<II", int(count_up), 0)
        syscall.map_update(self.maps["originals"], u32(0), original)
        syscall.map_update(self.maps["hook"], u32(0), u32(target))
        context = struct.pack("<11I", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ifindex) + bytes(192 - 44)
        with inside(self.node.name):
            return [
                syscall.prog_test_run(self.programs["feeder"], packet, context, repeat).duration_ns
                for _ in range(rounds)
            ]

    def ns(self, hook: str, packet: bytes, ifindex: int, *, new: bool, rounds: int = 200, repeat: int = 200) -> float:
        floor = statistics.median(self._run(self.programs["nothing"], packet, ifindex, new, rounds, repeat))
        cost = statistics.median(self._run(self.node.prog(hook), packet, ifindex, new, rounds, repeat))
        return cost - floor


def _packet(source: str, target: str, flags: str, mac: str = "") -> bytes:
    from scapy.all import IP, TCP, Ether, IPv6, raw

    network: Any = IPv6 if ":" in target else IP
    ttl = {"hlim": 255} if ":" in target else {"ttl": 255}
    frame = Ether(src=mac or "02:00:00:00:77:02", dst=GATEWAY_MAC)
    return bytes(raw(frame / network(src=source, dst=target, **ttl) / TCP(sport=1000, dport=80, flags=flags)))


@dataclass(frozen=True, slots=True)
class Path:
    """One way of a packet: which hook gets it on which interface, from whom, to whom."""

    name: str
    hook: str
    source: str
    target: str
    link: int
    mac: str = ""
    flags: int = 0
    opens: bool = True
    """Whether connections are opened, too."""


FAR_POD, FAR_NODE, NODE, WORLD, VIP = "10.244.2.9", "192.168.77.2", "192.168.77.1", "203.0.113.9", "10.96.0.10"


def _rules(node: Node) -> tuple[Pod, Pod]:
    """Two pods with a policy of some size around the rules that matter, and a table of addresses."""
    a, b = node.pod(1, 1001), node.pod(2, 1002)
    for pod in (a, b):
        for identity in range(2000, 2040):
            for direction in Direction:
                node.rule(pod, direction, identity, 6, 8000 + identity % 7)
    for port in (80, 8080):
        node.rule(b, Direction.INGRESS, a.identity, 6, port, rule_id=11)
        node.rule(a, Direction.EGRESS, b.identity, 6, port, rule_id=12)
    node.rule(a, Direction.EGRESS, 77, 6, 80, rule_id=13)
    node.rule(a, Direction.EGRESS, WORLD4, 6, 80, rule_id=14)
    node.rule(b, Direction.INGRESS, 77, 6, 80, rule_id=15)
    for i in range(1, 200):
        node.ipcache(f"10.{i}.0.0/16", 3000 + i)
    node.ipcache(NODE, 1)
    node.ipcache(FAR_NODE, 6)
    return a, b


def _uplink(node: Node) -> None:
    """The node's own network: an uplink with the far node behind it."""
    for command in (
        "link set pod3 up",
        "link set host3 up",
        f"addr replace {NODE}/24 dev host3",
        f"neigh replace {FAR_NODE} lladdr 02:00:00:00:77:02 dev host3 nud permanent",
        f"route replace 10.244.2.0/24 via {FAR_NODE}",
    ):
        sh("ip", *command.split(), netns=node.name)
    sh("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward", netns=node.name)
    for key in (NETDEV_NODE, node.ifindexes[3]):
        node.map("netdevs").update(u32(key), NetdevInfo(ipv4=ip(NODE)).pack())


def _paths(a: Pod, b: Pod, up: int) -> list[Path]:
    native, masquerade = int(ConfigFlags.NATIVE_ROUTING), int(ConfigFlags.MASQUERADE)
    return [
        Path("", "from_endpoint", a.ipv4, FAR_POD, a.ifindex, a.mac),
        Path("pair_", "from_endpoint", a.ipv4, b.ipv4, a.ifindex, a.mac),
        Path("pair_v6_", "from_endpoint", a.ipv6, b.ipv6, a.ifindex, a.mac, opens=False),
        Path("service_", "from_endpoint", a.ipv4, VIP, a.ifindex, a.mac),
        Path("native_", "from_endpoint", a.ipv4, FAR_POD, a.ifindex, a.mac, native),
        Path("native_in_", "from_netdev", FAR_POD, b.ipv4, up, "", native),
        Path("masquerade_", "to_netdev", a.ipv4, WORLD, up, "", masquerade),
        Path("node_port_", "from_netdev", WORLD, NODE, up, "", int(ConfigFlags.NORTH_SOUTH)),
        Path("host_", "from_netdev", FAR_NODE, NODE, up),
        Path("untouched_", "from_netdev", FAR_NODE, NODE, up, opens=False),
    ]


def _prepare(node: Node, path: Path) -> None:
    node.reset()
    _, b = _rules(node)
    node.settings(overlay_ifindex=node.ifindexes[2], flags=path.flags, ct_queue_places=PLACES)
    node.ipcache(FAR_POD, 77, "" if path.flags & ConfigFlags.NATIVE_ROUTING else FAR_NODE)
    if path.name == "service_":
        node.service(41, VIP, 80, [(b.ipv4, 8080)])
    if path.name == "node_port_":
        node.ipcache(FAR_POD, 77)
        expose(node, 42, NODE, 80, [(FAR_POD, 80)])
    if path.name == "host_":
        host = node.host()
        for identity in range(2000, 2040):
            node.rule(host, Direction.INGRESS, identity, 6, 8000 + identity % 7)
        node.rule(host, Direction.INGRESS, 6, 6, 80, rule_id=16)


def measure(cache_dir: FilePath) -> dict[str, float]:
    """ns per packet, established and new: at one endpoint (a pod talks to another node; the keys without a prefix), at
    both of a local pair, through a Service, and so on: see `_paths`."""
    node = Node(cache_dir, ct=262_144, ct_queue=PLACES, events=1 << 24)
    feeder = None
    figures = {}
    try:
        feeder = Feeder(node)
        _uplink(node)
        for path in _paths(*_rules(node), node.ifindexes[3]):
            _prepare(node, path)
            syn, ack = (_packet(path.source, path.target, flags, path.mac) for flags in "SA")
            if node.run(path.hook, syn, path.link).verdict == TC_ACT_SHOT:
                raise RuntimeError(f"path {path.name}: the packet was dropped")
            figures[f"{path.name}established_ns"] = feeder.ns(path.hook, ack, path.link, new=False)
            if path.opens:
                figures[f"{path.name}new_ns"] = feeder.ns(path.hook, syn, path.link, new=True, rounds=100)
        return figures
    finally:
        if feeder is not None:
            feeder.close()
        node.close()


if __name__ == "__main__":
    print(measure(FilePath(sys.argv[1])))
