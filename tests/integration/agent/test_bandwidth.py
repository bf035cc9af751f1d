"""Limits of bandwidth with real traffic: what an annotation says is what gets through, both ways, at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial

import pytest

from services.model.bandwidth import EGRESS, INGRESS
from tests.integration.agent.cluster import Cluster, Node, Pod, in_pod, sh
from tests.integration.agent.reach import connects, eventually

pytestmark = [pytest.mark.root, pytest.mark.etcd]

PORT = 7200
SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end:
        sock.send(bytes(16384))
    sock.shutdown(socket.SHUT_WR)
    print(sock.recv(100).decode())
"""
RECEIVE = """
import json, socket, sys, threading, time

def measure(connection):
    # Bytes per second from the second half on: buckets are full at the start.
    begun, got, marks = time.monotonic(), 0, []
    with connection:
        while data := connection.recv(1 << 16):
            got += len(data)
            marks.append((time.monotonic() - begun, got))
        half = next(mark for mark in marks if mark[0] >= marks[-1][0] / 2)
        connection.sendall(json.dumps((marks[-1][1] - half[1]) / (marks[-1][0] - half[0])).encode())

with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
    while True:
        threading.Thread(target=measure, args=(listener.accept()[0],), daemon=True).start()
"""
MBIT = 125_000
"""Bytes per second."""


async def rate(source: Pod, address: str, seconds: float = 1.5) -> float:
    """Bytes per second that arrive."""
    words = ("/usr/bin/python3", "-S", "-c", SEND, address, str(PORT), str(seconds))
    done = await asyncio.to_thread(in_pod, source, *words, seconds=20)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.fixture
async def pods() -> AsyncIterator[tuple[Cluster, Pod, Pod, Pod]]:
    """A client, a pod on its node and one on the other, which measure."""
    async with Cluster() as cluster:
        one, two = cluster.nodes
        client, near, far = [await cluster.add_pod(n, w) for n, w in (("client", one), ("near", one), ("far", two))]
        for pod in (near, far):
            await cluster.spawn("/usr/bin/python3", "-S", "-c", RECEIVE, str(PORT), netns=pod.netns)
            await eventually(partial(connects, client, pod.ip, PORT), seconds=8)
        yield cluster, client, near, far


def annotate(cluster: Cluster, pod: Pod, **annotations: str) -> None:
    names = {"egress": EGRESS, "ingress": INGRESS}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod.name, "annotations": {names[name]: text for name, text in annotations.items()}},
            "spec": {"nodeName": pod.node.name},
        }
    )


def queues(pod: Pod) -> tuple[bool, bool]:
    """Is what the pod sends limited, is what it receives?"""
    link = json.loads(sh("ip -j link show eth0", pod.netns))[0]["link_index"]
    outside = {link["ifindex"]: link["ifname"] for link in json.loads(sh("ip -j link", pod.node.netns))}
    return (
        "tbf c111:" in sh("tc qdisc show dev eth0", pod.netns),
        "tbf c111:" in sh(f"tc qdisc show dev {outside[link]}", pod.node.netns),
    )


async def limited(pod: Pod, egress: bool, ingress: bool) -> None:
    async def as_it_should() -> bool:
        return queues(pod) == (egress, ingress)

    await eventually(as_it_should, seconds=8)


async def problem(cluster: Cluster, node: Node) -> str:
    parts = {part.name: part.message for part in (await cluster.status(node)).components}
    return parts["bandwidth"]


async def test_bandwidth(pods: tuple[Cluster, Pod, Pod, Pod]) -> None:
    cluster, client, near, far = pods
    annotate(cluster, client, egress="40M")
    await limited(client, True, False)
    for server in (near, far):
        assert 0.85 * 40 * MBIT < await rate(client, server.addresses[1]) < 1.1 * 40 * MBIT
    # What others send to a pod, from its own node and from elsewhere.
    annotate(cluster, client)
    await limited(client, False, False)
    for server in (near, far):
        annotate(cluster, server, ingress="24M")
        await limited(server, False, True)
        assert 0.85 * 24 * MBIT < await rate(client, server.ip) < 1.1 * 24 * MBIT
    # The smaller one counts, and a change does at once; an agent that was away finds its queues.
    annotate(cluster, client, egress="16M")
    await limited(client, True, False)
    assert 0.8 * 16 * MBIT < await rate(client, near.ip) < 1.1 * 16 * MBIT
    await cluster.kill_agent(client.node)
    annotate(cluster, near)
    await cluster.start_agent(client.node)
    await cluster.ready(client.node)
    await limited(near, False, False)
    assert queues(client) == (True, False)
    # A mistake limits nothing and says where it is.
    annotate(cluster, client, egress="16Mbit")
    await limited(client, False, False)
    assert "pod default/client: metadata.annotations['kubernetes.io/egress-bandwidth']" in await problem(
        cluster, client.node
    )
    assert await rate(client, near.ip, 0.7) > 100 * MBIT
