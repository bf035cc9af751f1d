"""What a connect() to a Service costs more than one to its backend: the socket hooks' price, once per connection."""

from __future__ import annotations

import os
import socket
import statistics
import time
from pathlib import Path

from services.agent.abi.config import ConfigFlags
from tests.datapath.socketed import Cgroup, hooked
from tests.datapath.wire import WiredNode

VIP, PORT, ROUNDS, CALLS = "10.96.0.10", 80, 30, 400


def _round(address: str, port: int) -> float:
    """ns of a UDP socket's connect, which sends nothing; closing included, because a hook looks at that, too."""
    started = time.perf_counter_ns()
    for _ in range(CALLS):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((address, port))
        sock.close()
    return (time.perf_counter_ns() - started) / CALLS


def _run(netns: str, address: str, cgroup: Cgroup) -> tuple[list[float], list[float]]:
    """(to the backend without hooks, to the Service with them), by round."""

    def rounds(target: tuple[str, int]) -> float:
        os.sched_setaffinity(0, {0})
        return _round(*target)

    outside = Cgroup(f"{cgroup.path.name}o")
    try:
        plain, hooks = [], []
        for _ in range(ROUNDS):
            plain.append(outside.run(netns, lambda: rounds((address, 8080))))
            hooks.append(cgroup.run(netns, lambda: rounds((VIP, PORT))))
        return plain, hooks
    finally:
        outside.close()


def connect_ns(cache: Path) -> float:
    """Median difference in ns."""
    node = WiredNode(cache, 1)
    try:
        client, server = node.add_pod(1, 1001), node.add_pod(2, 1002)
        node.settings(flags=ConfigFlags.SOCKET_LB)
        node.service(41, VIP, PORT, [(server.ipv4, 8080)], protocol=socket.IPPROTO_UDP)
        with hooked(node.root, node.name) as (cgroup, _):
            plain, hooks = _run(node.pod_ns(client), server.ipv4, cgroup)
        return statistics.median(h - p for p, h in zip(plain, hooks, strict=True))
    finally:
        node.close()
