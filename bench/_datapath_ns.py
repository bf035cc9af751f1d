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
from pathlib import Path
from typing import Any

from services.agent.datapath import syscall
from services.agent.datapath.objects import CompiledObject, loads
from services.model.verdict import Direction
from tests.datapath.node import GATEWAY_MAC, Node, Pod, inside, u32

FEEDER = """
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
struct original { u8 bytes[34]; u16 length; u32 count_up; u32 port; };
BPF_F_TABLE("array", u32, struct original, originals, 1, 0);
BPF_F_TABLE("prog", u32, u32, hook, 1, 0);

int feeder(struct __sk_buff *skb)
{
	u32 zero = 0;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct original *o = originals.lookup(&zero);

	if (!o || data + 38 > end)
		return TC_ACT_SHOT;
	__builtin_memcpy(data, o->bytes, 34);
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
        original = packet[:34] + struct.pack("<H", len(packet)) + struct.pack("<II", int(count_up), 0)
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


def _packet(src: Pod, dst: str, flags: str, v6: bool = False) -> bytes:
    from scapy.all import IP, TCP, Ether, IPv6, raw

    network: Any = IPv6(src=src.ipv6, dst=dst, hlim=255) if v6 else IP(src=src.ipv4, dst=dst, ttl=255)
    return bytes(raw(Ether(src=src.mac, dst=GATEWAY_MAC) / network / TCP(sport=1000, dport=80, flags=flags)))


def measure(cache_dir: Path) -> dict[str, float]:
    """ns per packet, established and new: at one endpoint (a pod talks to another node) and at both of a local pair."""
    node = Node(cache_dir, ct=262144, events=1 << 24)
    feeder = None
    try:
        feeder = Feeder(node)
        node.settings(overlay_ifindex=node.ifindexes[3])
        a, b = node.pod(1, 1001), node.pod(2, 1002)
        far = "10.244.2.9"
        for pod in (a, b):
            for identity in range(2000, 2040):
                for direction in Direction:
                    node.rule(pod, direction, identity, 6, 8000 + identity % 7)
        node.rule(b, Direction.INGRESS, a.identity, 6, 80, rule_id=11)
        node.rule(a, Direction.EGRESS, b.identity, 6, 80, rule_id=12)
        node.rule(a, Direction.EGRESS, 77, 6, 80, rule_id=13)
        for i in range(1, 200):
            node.ipcache(f"10.{i}.0.0/16", 3000 + i)
        node.ipcache(far, 77, "192.168.77.2")
        figures = {}
        for prefix, dst, v6 in (("", far, False), ("pair_", b.ipv4, False), ("pair_v6_", b.ipv6, True)):
            syn, ack = _packet(a, dst, "S", v6), _packet(a, dst, "A", v6)
            node.run("from_endpoint", syn, a.ifindex)
            figures[f"{prefix}established_ns"] = feeder.ns("from_endpoint", ack, a.ifindex, new=False)
            if not v6:
                figures[f"{prefix}new_ns"] = feeder.ns("from_endpoint", syn, a.ifindex, new=True, rounds=100)
            node.events()
        return figures
    finally:
        if feeder is not None:
            feeder.close()
        node.close()


if __name__ == "__main__":
    print(measure(Path(sys.argv[1])))
