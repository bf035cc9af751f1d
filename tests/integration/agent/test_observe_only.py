"""Observe-only beside another network: plain veths, another's programs, flows with names, and nothing is touched."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from services.agent.datapath import syscall
from services.common.netns import inside, opened
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel
from tests.integration.agent.cluster import NETNS, Cluster, Node, network_policy, sh

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

IPS = {"client": "10.50.0.1", "server": "10.50.0.2"}
_PROG_QUERY = 16
_TCX = (46, 47)
REPLY = "HTTP/1.0 200 OK\\r\\n\\r\\nhello"


def _instruction(code: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, immediate)


DROP_81 = b"".join(
    (
        _instruction(0xBF, 0x16),  # r6 = the packet
        _instruction(0x28, immediate=36),  # r0 = destination port of TCP over IPv4
        _instruction(0x55, offset=2, immediate=81),
        *(_instruction(0xB7, immediate=2), _instruction(0x95)),  # drop
        *(_instruction(0xB7, immediate=0), _instruction(0x95)),  # let pass, and nobody after us decides
    )
)


def other_network(cluster: Cluster) -> None:
    """Pods as another plugin makes them: veths, host routes, a program of its own that counts and drops port 81."""
    node = cluster.nodes[0]
    sh("echo 1 > /proc/sys/net/ipv4/ip_forward", node.netns)
    for name, address in IPS.items():
        netns = f"{cluster.prefix}{name}"
        sh(f"ip netns add {netns}")
        sh(f"ip link add veth-{name} netns {node.netns} type veth peer name eth0 netns {netns}")
        sh(f"ip link set veth-{name} up; ip route add {address}/32 dev veth-{name}", node.netns)
        sh(f"echo 1 > /proc/sys/net/ipv4/conf/veth-{name}/proxy_arp", node.netns)
        sh(
            f"ip link set lo up; ip addr add {address}/32 dev eth0; ip link set eth0 up;ip route add default dev eth0",
            netns,
        )
    sh("tc qdisc add dev veth-server clsact", node.netns)
    pin = Path("/sys/fs/bpf") / f"{cluster.prefix}other"
    program = syscall.prog_load("other", DROP_81)
    syscall.obj_pin(program, pin)
    os.close(program)
    sh(f"tc filter add dev veth-server egress pref 1 handle 1 bpf da object-pinned {pin}", node.netns)
    pin.unlink()
    for name, address in IPS.items():
        labels = {"app": name}
        metadata = {"name": name, "labels": labels}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        spec = {"nodeName": node.name}
        cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})


def state(node: Node) -> str:
    """Everything on the node that somebody else owns."""
    commands = "ip -o link; ip addr; ip rule; ip route show table all; ip -6 route; nft list ruleset;"
    filters = "for l in veth-client veth-server up0; do tc qdisc show dev $l; tc filter show dev $l ingress; "
    text = sh(f"{commands} {filters} tc filter show dev $l egress; done; cat /proc/sys/net/ipv4/ip_forward", node.netns)
    return "\n".join(line for line in text.splitlines() if "fe80" not in line and "ff00" not in line)


def watched(node: Node, interface: str) -> int:
    """How many programs stand in front of an interface."""
    found = 0
    with opened(str(NETNS / node.netns)) as netns, inside(netns):
        index = socket.if_nametoindex(interface)
        for kind in _TCX:
            attr = ctypes.create_string_buffer(160)
            struct.pack_into("IIII", attr, 0, index, kind, 0, 0)
            with contextlib.suppress(OSError):
                syscall.bpf(_PROG_QUERY, attr)  # type: ignore[arg-type]
                found += struct.unpack_from("I", attr, 24)[0]
    return found


def ask(cluster: Cluster, port: int, seconds: float = 3) -> bool:
    netns = f"{cluster.prefix}client"
    words = ["nsenter", f"--net={NETNS / netns}", "curl", "-s", "-m", f"{seconds:g}", f"http://{IPS['server']}:{port}/"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "hello" in done.stdout


async def flows(node: Node) -> list[flow_pb2.Flow]:
    async with channel(f"unix://{node.run_dir / 'hubble.sock'}", None, "agent") as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        answers = stub.GetFlows(observer_pb2.GetFlowsRequest(number=1000), timeout=5)
        return [answer.flow async for answer in answers if answer.HasField("flow")]


async def until_seen(node: Node, wanted: set[tuple[str, str, str, str]]) -> set[tuple[str, str, str, str]]:
    """(source, destination, direction, verdict) of the flows, as soon as the wanted ones are there."""
    found: set[tuple[str, str, str, str]] = set()
    for _ in range(50):
        with contextlib.suppress(grpc.aio.AioRpcError):
            found = {
                (
                    flow.source.pod_name,
                    flow.destination.pod_name,
                    flow_pb2.TrafficDirection.Name(flow.traffic_direction),
                    flow_pb2.Verdict.Name(flow.verdict),
                )
                for flow in await flows(node)
            }
        if wanted <= found:
            break
        await asyncio.sleep(0.1)
    return found


@contextlib.asynccontextmanager
async def beside(**options: object) -> AsyncIterator[Cluster]:
    """A node with another network, and an agent that watches it."""
    cluster = Cluster(nodes=1, observe_only=True, observe_interfaces=["veth-*"], **options)
    started = cluster.start_agent

    async def prepared(node: Node) -> None:
        if not (NETNS / f"{cluster.prefix}client").exists():
            other_network(cluster)
            await cluster.spawn(
                *(sys.executable, "-c", SERVER, IPS["server"]), netns=f"{cluster.prefix}server", log="server.log"
            )
            cluster.before = state(node)  # type: ignore[attr-defined]
        await started(node)

    cluster.start_agent = prepared  # type: ignore[method-assign]
    try:
        async with cluster:
            yield cluster
    finally:
        for name in IPS:
            with contextlib.suppress(AssertionError):
                sh(f"ip netns del {cluster.prefix}{name}")


SERVER = f"""
import socketserver, sys, threading
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(4096)
        self.request.sendall(b"{REPLY}")
socketserver.TCPServer.allow_reuse_address = True
servers = [socketserver.ThreadingTCPServer((sys.argv[1], port), Handler) for port in (80, 81)]
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
"""


async def test_flows_of_another_network_s_pods() -> None:
    async with beside() as cluster:
        node = cluster.nodes[0]
        cluster.apply(network_policy("closed", "server", "nobody", 443))  # known, and not enforced
        assert [watched(node, name) for name in ("veth-client", "veth-server", "up0")] == [2, 2, 0]
        assert state(node) == cluster.before  # type: ignore[attr-defined]
        assert ask(cluster, 80)
        assert not ask(cluster, 81, 0.7), "the other network's program has the last word"
        both = {("client", "server", way, "FORWARDED") for way in ("EGRESS", "INGRESS")}
        found = await until_seen(node, both)
        assert both <= found
        assert {verdict for *_, verdict in found} == {"FORWARDED"}
        forwarded = next(flow for flow in await flows(node) if flow.destination.pod_name == "server")
        assert "k8s:app=client" in forwarded.source.labels
        assert forwarded.destination.identity >= 256
        status = await cluster.status(node)
        assert status.endpoints == 2
        assert "2 watched" in next(each.message for each in status.components if each.name == "interfaces")

        # An interface that comes later, and one that goes.
        sh("ip link add veth-late type veth peer name late-peer", node.netns)
        for _ in range(50):
            if watched(node, "veth-late") == 2:
                break
            await asyncio.sleep(0.1)
        assert watched(node, "veth-late") == 2
        sh("ip link del veth-late", node.netns)

        # However it ends, nothing of it is in the way.
        await cluster.kill_agent(node, signal.SIGKILL)
        assert [watched(node, name) for name in ("veth-client", "veth-server")] == [0, 0]
        assert ask(cluster, 80)
        cluster.options["policy_audit_mode"] = True
        await cluster.start_agent(node)
        await cluster.ready(node)
        assert ask(cluster, 80), "nothing is refused"
        told = {("client", "server", "EGRESS", "FORWARDED"), ("client", "server", "INGRESS", "AUDIT")}
        assert told <= await until_seen(node, told), "flows say what the policy would refuse"
        cluster.remove("Pod", "server")
        await cluster.kill_agent(node, signal.SIGTERM)
        assert watched(node, "veth-client") == 0
        assert state(node) == cluster.before  # type: ignore[attr-defined]
