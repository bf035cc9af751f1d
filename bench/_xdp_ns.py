"""What forwarding for the outside costs by BPF_PROG_TEST_RUN: a node port with its backend on another node, in XDP.

As in `_datapath_ns` each run starts in a small program that puts the packet back (translation changes it) and
tail-calls the one that is measured; the same with an empty one is the floor that is subtracted.

    xdp_known_ns, xdp_answer_ns, xdp_new_ns   per packet: of a known connection, its answer, of a new connection
    xdp_mpps                                  known connection's packets per second and core, in millions
"""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import sys
from pathlib import Path

from bench._datapath_ns import _COMPILE, FAR_NODE, FAR_POD, FEEDER, NODE, WORLD, _packet
from services.agent.abi.config import ConfigFlags
from services.agent.abi.layout import be16
from services.agent.abi.nat import NatKey
from services.agent.datapath import syscall
from services.agent.datapath.objects import loads
from services.agent.datapath.units import Kind, ProgramType
from tests.datapath.gateway import expose, prepare, route, table
from tests.datapath.node import Node, inside, ip, sh, u32

PORT = 80
XDP_TX = 3
_KIND = Kind(ProgramType.XDP)


def _source() -> str:
    """The feeder for another kind of program."""
    pairs = (("__sk_buff", "xdp_md"), ("TC_ACT_SHOT", "XDP_DROP"), ("TC_ACT_OK", "XDP_PASS"))
    text = FEEDER
    for old, new in pairs:
        text = text.replace(old, new)
    return text


class XdpFeeder:
    """Feeds the XDP program of a node."""

    def __init__(self, node: Node) -> None:
        self._node, self._link = node, node.ifindexes[3]
        done = subprocess.run(
            [sys.executable, "-c", _COMPILE], input=_source(), capture_output=True, text=True, check=True
        )
        compiled = loads(done.stdout)
        self._maps = {
            m.name: syscall.map_create(m.type, m.key_size, m.value_size, m.max_entries, m.flags, m.name)
            for m in compiled.maps
        }
        self._programs = {p.name: syscall.prog_load(p.name, p.link(self._maps), _KIND) for p in compiled.programs}

    def close(self) -> None:
        """Let go of everything."""
        for fd in (*self._maps.values(), *self._programs.values()):
            os.close(fd)

    def run(self, program: int, packet: bytes, repeat: int = 1) -> syscall.RunResult:
        """The packet arrives at the uplink, so many times."""
        context = struct.pack("<6I", 0, len(packet), 0, self._link, 0, 0)
        with inside(self._node.name):
            return syscall.prog_test_run(program, packet, context, repeat)

    def ns(self, packet: bytes, *, new: bool, rounds: int = 100, repeat: int = 200) -> float:
        """Median cost of one packet in the program. Raises when it is not sent on."""
        target = self._node.prog("xdp_netdev")
        if self.run(target, packet).verdict != XDP_TX:
            raise RuntimeError("the packet was not forwarded by XDP")
        original = packet[:54] + struct.pack("<H", len(packet)) + struct.pack("<II", int(new), 0)
        costs = []
        for program in (self._programs["nothing"], target):
            syscall.map_update(self._maps["originals"], u32(0), original)
            syscall.map_update(self._maps["hook"], u32(0), u32(program))
            feeder = self._programs["feeder"]
            costs.append(statistics.median(self.run(feeder, packet, repeat).duration_ns for _ in range(rounds)))
        return costs[1] - costs[0]


def measure(cache_dir: Path) -> dict[str, float]:
    """See the module."""
    node = Node(cache_dir, nat_table=262_144)
    feeder = None
    try:
        prepare(node, (1024, 65535), flags=ConfigFlags.NORTH_SOUTH)
        route(node)
        sh("ip", "link", "set", "pod3", "up", netns=node.name)
        for address in (FAR_NODE, "192.168.77.254"):
            sh(*f"ip neigh replace {address} lladdr 02:00:00:00:77:02 dev host3 nud permanent".split(), netns=node.name)
        sh(*f"ip route replace 10.244.2.0/24 via {FAR_NODE}".split(), netns=node.name)
        node.ipcache(FAR_POD, 77)
        expose(node, 41, NODE, PORT, [(FAR_POD, PORT)])
        feeder = XdpFeeder(node)
        syn, ack = (_packet(WORLD, NODE, flags) for flags in "SA")
        figures = {"xdp_new_ns": feeder.ns(syn, new=True, rounds=50)}
        figures["xdp_known_ns"] = feeder.ns(ack, new=False)
        answer = bytearray(_packet(FAR_POD, NODE, "A"))
        key = NatKey(saddr=ip(WORLD), daddr=ip(NODE), sport=be16(1000), dport=be16(PORT), protocol=6)
        answer[34:38] = struct.pack(">H", PORT) + struct.pack("<H", table(node)[key].sport)
        answer[50:52] = bytes(2)
        figures["xdp_answer_ns"] = feeder.ns(bytes(answer), new=False)
        figures["xdp_mpps"] = 1000 / figures["xdp_known_ns"]
        return figures
    finally:
        if feeder is not None:
            feeder.close()
        node.close()


if __name__ == "__main__":
    print(measure(Path(sys.argv[1])))
