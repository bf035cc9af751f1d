"""What the datapath costs: two policed pods with flows on, against the same pods over plain veth routing.

    rr_ratio       round trips of one byte on one connection      (median over interleaved rounds of policed / plain)
    crr_ratio      connect, one byte each way, close
    stream_ratio   one connection, as fast as it goes
    overlay_* native_*   the same three between two nodes, over plain routing between them
    established_ns, new_ns   one packet at one endpoint, by BPF_PROG_TEST_RUN: towards another node by the overlay
    pair_* service_*   likewise, at both ends of a local pair; with a Service on the way
    native_* native_in_*   with native routing, out and in
    masquerade_* host_* untouched_*   a pod's packet to the outside as the node translates it; one to a node with a
                   policy of its own; one to a node that has none
    node_port_*    a packet from outside to a Service whose backend is on another node, by tc
    xdp_known_ns xdp_answer_ns xdp_new_ns xdp_mpps   the same by XDP; millions of packets per second and core
    socket_connect_ns   what the socket hooks add to a connect() to a Service
    load_first_s, load_again_s   the loader child: compiling, and with the object in the cache

Client and server share one core; on the other the ring is read as fast as an agent reads it.
The last line is one JSON object. `--quick` for trying the bench itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import _datapath_ns, _traffic, _two_nodes, _xdp_ns
from bench._pair import pair, reading
from bench._socket_connect import connect_ns
from services.agent.datapath.bpffs import remove_pins
from services.agent.datapath.loader_client import LoaderConfig, load
from services.model.verdict import Direction
from tests.datapath.node import sh
from tests.datapath.wire import WiredNode

KINDS = ("rr", "crr", "stream")
PLACES = 32_768


def prepare(namespace: str) -> None:
    """Enough ports for a stream of short connections."""
    for name, value in (("ip_local_port_range", "1024 65535"), ("tcp_tw_reuse", "1")):
        sh("sh", "-c", f"echo '{value}' > /proc/sys/net/ipv4/{name}", netns=namespace)


@contextlib.contextmanager
def nodes(cache: Path) -> Iterator[tuple[WiredNode, WiredNode]]:
    """(plain, policed), with a policy on both: on the plain one nobody asks it."""
    with pair(cache, ct=262_144, ct_queue=PLACES, events=_two_nodes.EVENTS) as both:
        for node in both:
            node.settings(ct_queue_places=PLACES)
            client, server = node.pods[1], node.pods[2]
            for pod in (client, server):
                prepare(node.pod_ns(pod))
            for identity in range(2000, 2100):  # a policy of some size around the rule that matters
                node.rule(server, Direction.INGRESS, identity, 6, 80)
            node.rule(client, Direction.EGRESS, 1002, 6, 80, rule_id=12)
            node.rule(server, Direction.INGRESS, 1001, 6, 80, rule_id=11)
        yield both


@dataclass(frozen=True, slots=True)
class Side:
    """A client and a server, by their namespaces."""

    client: str
    server: str
    address: str

    def rate(self, kind: str, seconds: float) -> float:
        """Round trips, connections or bytes per second."""
        return _traffic.measure(kind, self.client, self.server, self.address, 80, seconds)


def ratios(sides: dict[str, Side], rounds: int, seconds: float) -> dict[str, float]:
    """Interleaved rounds, in each of which every side is compared with its neighbour in time, "plain". Keys of a side
    have its name in front."""
    figures: dict[str, list[float]] = {}
    names = list(sides)
    for number in range(rounds):
        for kind in KINDS:
            rate = {name: sides[name].rate(kind, seconds) for name in (names if number % 2 else reversed(names))}
            figures.setdefault(f"{kind}_plain", []).append(rate["plain"])
            for name in names:
                if name != "plain":
                    figures.setdefault(f"{name}{kind}_ratio", []).append(rate[name] / rate["plain"])
        print(f"round {number + 1}/{rounds}:", {k: round(v[-1], 3) for k, v in figures.items()}, file=sys.stderr)
    return {name: statistics.median(values) for name, values in figures.items()}


def local(cache: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Two pods of one node, and what of their events was lost."""
    with nodes(cache) as (plain, policed), reading(policed):
        sides = {
            name: Side(node.pod_ns(node.pods[1]), node.pod_ns(node.pods[2]), node.pods[2].ipv4)
            for name, node in (("plain", plain), ("", policed))
        }
        figures = ratios(sides, rounds, seconds)
        return figures | {"events_lost": lost(policed)}


def remote(cache: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Pods of two nodes."""
    with _two_nodes.pairs(cache, prepare) as pairs, contextlib.ExitStack() as stack:
        for kind, both in pairs.items():
            if kind != "plain":
                for node in both:
                    stack.enter_context(reading(node))
        sides = {
            "plain" if kind == "plain" else f"{kind}_": Side(
                one.pod_ns(one.pods[1]), two.pod_ns(two.pods[1]), two.pods[1].ipv4
            )
            for kind, (one, two) in pairs.items()
        }
        found = ratios(sides, rounds, seconds)
    return {f"remote_{name}" if name.endswith("_plain") else name: value for name, value in found.items()}


def lost(node: WiredNode) -> int:
    """Events that found the ring full."""
    counts = [node.map("lost").lookup_percpu(bytes([kind, 0, 0, 0])) for kind in range(8)]
    return sum(int.from_bytes(count, "little") for kind in counts for count in kind)


def loader_times(cache: Path) -> dict[str, float]:
    """Seconds of the loader child, started from scratch."""
    root = Path(f"/sys/fs/bpf/ciliate/bench{os.getpid()}")
    config = LoaderConfig(root=str(root), cache_dir=str(cache), max_entries={"ct": 65536})
    times = {}
    try:
        for name in ("load_first_s", "load_again_s"):
            start = time.perf_counter()
            asyncio.run(load(config))
            times[name] = round(time.perf_counter() - start, 3)
    finally:
        remove_pins(root)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rounds, for trying the bench itself")
    options = parser.parse_args()
    rounds, seconds = (2, 0.3) if options.quick else (13, 1.2)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        figures: dict[str, float] = loader_times(cache)
        print("loader:", figures, file=sys.stderr)
        figures |= _datapath_ns.measure(cache)
        figures |= _xdp_ns.measure(cache)
        figures["socket_connect_ns"] = connect_ns(cache)
        figures |= local(cache, rounds, seconds)
        figures |= remote(cache, max(rounds // 2, 1), seconds)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
