"""Egress gateways with real packets: who the outside sees, in both routing modes, and what happens without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.agent.datapath.maps import PinnedMap
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.common.pb.agent.v1 import agent_pb2_grpc
from services.common.tls import channel
from services.model.verdict import DropReason
from tests.integration.agent.cluster import WORLD, Cluster, Node, Pod, in_pod, sh
from tests.integration.agent.reach import eventually

pytestmark = [pytest.mark.root, pytest.mark.etcd]

PORT = 7300
WHOAMI = str(Path(__file__).with_name("whoami.py"))
EGRESS = ("172.30.0.77", "fd00:172:30::77")
ASK = """
import socket, sys
address, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, getattr(socket, kind)) as sock:
    sock.settimeout(0.5)
    sock.connect((address, port))
    if kind == "SOCK_DGRAM":
        sock.send(b"?")
    print(sock.recv(100).decode().strip())
"""


async def seen(pod: Pod, address: str, kind: str = "SOCK_STREAM") -> str:
    """Who the outside thinks that the pod is; '' when it hears nothing."""
    done = await asyncio.to_thread(in_pod, pod, "/usr/bin/python3", "-S", "-c", ASK, address, str(PORT), kind)
    return done.stdout.strip()


async def sees(pod: Pod, address: str, expected: str) -> None:
    """Both protocols, as soon as the agents have it."""

    async def both() -> bool:
        return [await seen(pod, address, kind) for kind in ("SOCK_STREAM", "SOCK_DGRAM")] == [expected] * 2

    try:
        await eventually(both, seconds=8)
    except TimeoutError:
        raise AssertionError(f"{pod.name} is {await seen(pod, address)!r} to {address}, not {expected!r}") from None


def policy(name: str, destinations: list[str], **gateway: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumEgressGatewayPolicy",
        "metadata": {"name": name},
        "spec": {
            "selectors": [{"podSelector": {"matchLabels": {"app": "client"}}}],
            "destinationCIDRs": destinations,
            "excludedCIDRs": ["203.0.113.200/32"],
            "egressGateway": {"nodeSelector": {"matchLabels": {"egress": "yes"}}, **gateway},
        },
    }


async def ask(node: Node, method: str, request: Any) -> Any:
    async with channel(node.target, None, "agent") as there:
        stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
        return await getattr(stub, method)(request, timeout=5)


@pytest.fixture(params=["tunnel", "native"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    native = request.param == "native"
    options = {"routing_mode": "native", "auto_direct_node_routes": True} if native else {}
    async with Cluster(outside=True, **options) as cluster:
        await cluster.spawn("/usr/bin/python3", "-S", WHOAMI, str(PORT), *WORLD, netns=cluster.router)
        yield cluster


async def test_egress_gateway(cluster: Cluster) -> None:
    one, two = cluster.nodes
    far, near = await cluster.add_pod("far", one, app="client"), await cluster.add_pod("near", two, app="client")
    other = await cluster.add_pod("other", one, app="other")
    for address, own in zip(WORLD, one.addresses, strict=True):
        await sees(far, address, own)
    for address in EGRESS:
        sh(f"ip addr add {address}/{128 if ':' in address else 32} dev up0 nodad", two.netns)
    cluster.node_object(two, egress="yes")
    cluster.apply(policy("four", ["203.0.113.0/24"], egressIP=EGRESS[0]))
    cluster.apply(policy("six", ["2001:db8::/32"], egressIP=EGRESS[1]))
    for pod in (far, near):
        for address, expected in zip(WORLD, EGRESS, strict=True):
            await sees(pod, address, expected)
    for address, own in zip(WORLD, one.addresses, strict=True):
        await sees(other, address, own)
    # Nodes and pods are not outside.
    assert in_pod(far, "ping", "-c1", "-W1", near.ip).returncode == 0
    await more_specific(cluster, far)
    await told(far, one, two)
    await no_such_address(cluster, far, two)
    await gateway_gone(cluster, far, near)
    for name in ("four", "six", "wide"):
        cluster.remove("CiliumEgressGatewayPolicy", name)
    for address, own in zip(WORLD, one.addresses, strict=True):
        await sees(far, address, own)
    assert not (await ask(one, "ListEgressGateways", pb.ListEgressGatewaysRequest())).gateways


async def more_specific(cluster: Cluster, far: Pod) -> None:
    """Of several policies the longest destination counts, and exclusions are the excluding policy's own."""
    one, _ = cluster.nodes
    cluster.apply(policy("wide", ["0.0.0.0/0"]))
    await asyncio.sleep(0.3)
    await sees(far, WORLD[0], EGRESS[0])
    narrow = policy("four", ["203.0.113.0/24"], egressIP=EGRESS[0])
    narrow["spec"]["excludedCIDRs"] = [f"{WORLD[0]}/32"]
    cluster.apply(narrow)
    await sees(far, WORLD[0], cluster.nodes[1].addresses[0])  # the wide one's turn: the gateway's own address
    cluster.remove("CiliumEgressGatewayPolicy", "wide")
    await sees(far, WORLD[0], one.addresses[0])
    cluster.apply(policy("wide", ["0.0.0.0/0"]))
    cluster.apply(policy("four", ["203.0.113.0/24"], egressIP=EGRESS[0]))
    await sees(far, WORLD[0], EGRESS[0])


async def told(far: Pod, one: Node, two: Node) -> None:
    found = {g.name: g for g in (await ask(two, "ListEgressGateways", pb.ListEgressGatewaysRequest())).gateways}
    assert (found["four"].pods, list(found["four"].gateways), found["four"].address) == (4, ["node2"], EGRESS[0])
    assert not found["four"].problems
    async with channel(one.target, None, "agent") as there:
        stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
        parts = [part async for part in stub.DumpMap(pb.DumpMapRequest(map=pb.MAP_KIND_EGRESS))]
    rows = {tuple(part.row.cells) for part in parts if not part.HasField("header")}
    assert {(row[1], row[2]) for row in rows} >= {("203.0.113.0/24", "172.30.0.2")}
    assert {row[0] for row in rows} == {*far.addresses}


async def no_such_address(cluster: Cluster, far: Pod, two: Node) -> None:
    """Nothing leaves with another address when the gateway loses the one that was asked for."""
    sh(f"ip addr del {EGRESS[0]}/32 dev up0", two.netns)
    await sees(far, WORLD[0], "")

    async def says() -> bool:
        parts = {part.name: part for part in (await cluster.status(two)).components}
        return EGRESS[0] in parts["egress gateways"].message

    await eventually(says, seconds=8)
    assert await drops(cluster, far, DropReason.DROP_NO_EGRESS_IP, two)
    sh(f"ip addr add {EGRESS[0]}/32 dev up0", two.netns)
    await sees(far, WORLD[0], EGRESS[0])


async def gateway_gone(cluster: Cluster, far: Pod, near: Pod) -> None:
    one, two = cluster.nodes
    cluster.node_object(two)  # selected no more
    for pod in (far, near):
        await sees(pod, WORLD[0], "")
    assert await drops(cluster, far, DropReason.NO_EGRESS_GATEWAY, one)
    cluster.node_object(one, egress="yes")
    sh(f"ip addr del {EGRESS[0]}/32 dev up0; ip addr del {EGRESS[1]}/128 dev up0", two.netns)
    sh(f"ip addr add {EGRESS[0]}/32 dev up0; ip addr add {EGRESS[1]}/128 dev up0 nodad", one.netns)
    for pod in (far, near):
        for address, expected in zip(WORLD, EGRESS, strict=True):
            await sees(pod, address, expected)


async def drops(cluster: Cluster, pod: Pod, reason: DropReason, node: Node) -> bool:
    """Does a packet of the pod end there for this reason?"""
    before = await counter(cluster, node, reason)
    await seen(pod, WORLD[0])
    return await counter(cluster, node, reason) > before


async def counter(cluster: Cluster, node: Node, reason: DropReason) -> int:
    found = PinnedMap(cluster.pins / node.name / "maps" / "metrics")
    try:
        total = 0
        for key, value in found.items():
            if int.from_bytes(key, "little") // 4 == reason:
                total += sum(int.from_bytes(value[at : at + 8], "little") for at in range(0, len(value), 16))
        return total
    finally:
        found.close()
