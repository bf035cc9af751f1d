"""What balancing Services at the socket costs and spares, against translating packet by packet at tc.

    established_direct_ns  a packet of an open connection to a pod, in both pods' programs (BPF_PROG_TEST_RUN)
    established_socket_ns  the same, the connection having been balanced at the socket: it must not differ
    established_tc_ns      the same, translated packet by packet
    new_direct_ns, new_socket_ns, new_tc_ns   likewise for packets that open a connection
    connect_*_ns           one connect(2) of a UDP socket, by the client's clock, loop included: without hooks, with
                           hooks and no Service, to a Service

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from bench._datapath_ns import Feeder, _packet
from services.agent.abi.config import ConfigFlags
from services.model.verdict import Direction
from tests.datapath.node import Node, sh
from tests.datapath.socketed import Cgroup, Services, hooked

VIP, ELSEWHERE, BACKENDS = "10.96.0.1", "10.99.0.9", ["10.99.0.1", "10.99.0.2"]


def packets(node: Node, rounds: int) -> dict[str, float]:
    """ns per packet through `from_endpoint` and the receiver's turn."""
    feeder = Feeder(node)
    try:
        client, server = node.pod(1, 1001), node.pod(2, 1002)
        node.rule(client, Direction.EGRESS, server.identity, 6, 80, rule_id=12)
        node.rule(server, Direction.INGRESS, client.identity, 6, 80, rule_id=11)
        for number in range(1000):  # a cluster of some size around the Service that matters
            node.service(1000 + number, f"10.97.{number >> 8}.{number & 255}", 80, [(server.ipv4, 80)])
        node.service(7, VIP, 80, [(server.ipv4, 80)])
        kinds = {
            "direct": (server.ipv4, 0),
            "socket": (server.ipv4, ConfigFlags.SOCKET_LB),
            "tc": (VIP, 0),
        }
        figures: dict[str, list[float]] = {}
        for _ in range(rounds):
            for kind, (destination, flags) in kinds.items():
                node.settings(flags=flags)
                syn, ack = (_packet(client.ipv4, destination, letter, client.mac) for letter in "SA")
                node.run("from_endpoint", syn, client.ifindex)
                for name, packet, new in (("established", ack, False), ("new", syn, True)):
                    cost = feeder.ns("from_endpoint", packet, client.ifindex, new=new, rounds=40)
                    figures.setdefault(f"{name}_{kind}_ns", []).append(cost)
                node.events()
        return {name: round(statistics.median(values), 1) for name, values in figures.items()}
    finally:
        feeder.close()


def connects(node: Node, rounds: int) -> dict[str, float]:
    """ns per connect(2), client's loop included."""
    sh("ip", "link", "set", "lo", "up", netns=node.name)
    for address in (*BACKENDS, ELSEWHERE):
        sh("ip", "addr", "add", f"{address}/32", "dev", "lo", netns=node.name)
    Services(node.map).put(9, (VIP, 53), [(address, 53) for address in BACKENDS], socket.IPPROTO_UDP)

    def loop(target: tuple[str, int]) -> float:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            started = time.perf_counter_ns()
            for _ in range(20_000):
                made.connect(target)
            return (time.perf_counter_ns() - started) / 20_000

    figures: dict[str, list[float]] = {}
    outside = Cgroup(f"{node.name}x")
    try:
        with hooked(node.root, node.name) as (inside, _):
            for _ in range(rounds):
                for kind, cgroup, target in (
                    ("plain", outside, (ELSEWHERE, 53)),
                    ("other", inside, (ELSEWHERE, 53)),
                    ("service", inside, (VIP, 53)),
                ):
                    figures.setdefault(f"connect_{kind}_ns", []).append(cgroup.run(node.name, partial(loop, target)))
    finally:
        outside.close()
    return {name: round(statistics.median(values)) for name, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, for trying the bench itself")
    rounds = 3 if parser.parse_args().quick else 11
    os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder), ct=262144, events=1 << 24)
        try:
            figures = packets(node, rounds) | connects(node, rounds)
        finally:
            node.close()
    print(json.dumps({"bench": "sockets", **figures}))


if __name__ == "__main__":
    main()
