"""A node under a host policy: real packets from another node, from the world, from pods here and there."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from services.common.pb.agent.v1 import agent_pb2 as pb
from services.common.pb.agent.v1 import agent_pb2_grpc
from services.common.pb.flow import flow_pb2 as flow
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel
from tests.integration.agent.cluster import NETNS, Cluster, Node, sh
from tests.integration.agent.cluster import WORLD as OUTSIDE

pytestmark = [pytest.mark.root, pytest.mark.etcd]

OPEN, CLOSED = 7022, 7080
WORLD, SECOND = OUTSIDE[0], "172.30.0.99"
SERVE = """
import asyncio, sys
async def echo(reader, writer):
    writer.write(await reader.read(9)); await writer.drain(); writer.close()
async def main():
    for port in sys.argv[1:]:
        await asyncio.start_server(echo, None, int(port))
    await asyncio.Event().wait()
asyncio.run(main())
"""
POLICY: dict[str, Any] = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumClusterwideNetworkPolicy",
    "metadata": {"name": "nodes"},
    "spec": {
        "nodeSelector": {"matchLabels": {"guarded": "yes"}},
        "ingress": [
            {"fromEntities": ["world"], "toPorts": [{"ports": [{"port": str(OPEN), "protocol": "TCP"}]}]},
            {"fromEndpoints": [{"matchLabels": {"role": "friend"}}]},
        ],
    },
}


async def connects(netns: str, address: str, port: int, source: str = "") -> bool:
    """Whether bytes go there and back."""
    code = (
        f"import socket; source = ({source!r}, 0) if {source!r} else None;"
        f"s = socket.create_connection(({address!r}, {port}), 0.7, source);"
        "s.sendall(b'ping-pong'); assert s.recv(9) == b'ping-pong'"
    )
    words = ["nsenter", f"--net={NETNS / netns}", "/usr/bin/python3", "-S", "-c", code]
    child = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.DEVNULL)
    return await child.wait() == 0


async def becomes(netns: str, address: str, port: int, source: str = "", *, open_: bool) -> None:
    async with asyncio.timeout(15):
        while await connects(netns, address, port, source) is not open_:  # noqa: ASYNC110 - other processes change it
            await asyncio.sleep(0.02)


def node_object(node: Node, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "labels": labels}}


async def introspect(node: Node) -> tuple[pb.Endpoint, list[pb.Policy], pb.ExplainPolicyResponse]:
    """The node as an endpoint, the policies, and why the world may not reach it."""
    asked = pb.Connection(source=pb.Peer(name="world"), destination=pb.Peer(name="host"), protocol=6, port=CLOSED)
    async with channel(node.target, None, "agent") as there:
        stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
        endpoint = (await stub.GetEndpoint(pb.GetEndpointRequest(endpoint="host"))).endpoint
        policies = list((await stub.ListPolicies(pb.ListPoliciesRequest())).policies)
        why = await stub.ExplainPolicy(pb.ExplainPolicyRequest(connection=asked))
    return endpoint, policies, why


async def dropped(node: Node) -> flow.Flow:
    """The latest dropped flow."""
    request = observer_pb2.GetFlowsRequest(number=1, whitelist=[flow.FlowFilter(verdict=[flow.DROPPED])])
    async with channel(f"unix://{node.run_dir / 'hubble.sock'}", None, "agent") as there:
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        async with asyncio.timeout(5):
            while True:
                found = [a.flow async for a in stub.GetFlows(request, timeout=5) if a.HasField("flow")]
                if found:
                    return found[-1]
                await asyncio.sleep(0.05)


async def test_a_guarded_node() -> None:
    async with Cluster(nodes=2, outside=True) as cluster:
        one, two = cluster.nodes
        friend = await cluster.add_pod("friend", one, role="friend")
        stranger = await cluster.add_pod("stranger", one, role="stranger")
        far_friend = await cluster.add_pod("far-friend", two, role="friend")
        far_stranger = await cluster.add_pod("far-stranger", two, role="stranger")
        for where in (one.netns, two.netns, friend.netns, far_friend.netns):
            await cluster.spawn(sys.executable, "-S", "-c", SERVE, str(OPEN), str(CLOSED), netns=where)
        here, there = "172.30.0.1", "172.30.0.2"
        await becomes(cluster.router, here, CLOSED, WORLD, open_=True)
        assert not (await introspect(one))[0].ingress_enforced

        # Nobody is selected until the node has the label.
        cluster.apply(POLICY)
        cluster.apply(node_object(one, guarded="yes"))
        await becomes(cluster.router, here, CLOSED, WORLD, open_=False)
        assert await connects(cluster.router, here, OPEN, WORLD)
        told = await dropped(one)
        assert (told.IP.source, told.IP.destination, told.l4.TCP.destination_port) == (WORLD, here, CLOSED)
        assert (told.destination.identity, list(told.destination.labels)) == (1, ["reserved:host"])
        assert "default deny by CiliumClusterwideNetworkPolicy nodes" in told.Summary
        assert "nearest rule CiliumClusterwideNetworkPolicy nodes spec.ingress[0]" in told.Summary

        # The other node is no "world", by either family; pods are who they are, here and behind the overlay.
        assert not await connects(two.netns, here, OPEN)
        assert not await connects(two.netns, "fd00:172:30::1", OPEN)
        assert [await connects(p.netns, here, CLOSED) for p in (friend, stranger)] == [True, False]
        assert [await connects(p.netns, here, CLOSED) for p in (far_friend, far_stranger)] == [True, False]

        # Nor is it at an address that it gets meanwhile.
        sh(f"ip addr add {SECOND}/24 dev up0", two.netns)
        await becomes(two.netns, here, OPEN, SECOND, open_=False)

        # What the node opens itself is answered: to nodes, to pods of its own and behind the overlay.
        for address in (there, "fd00:172:30::2", friend.ip, far_friend.ip):
            assert await connects(one.netns, address, OPEN), address
        # Pods' own connections, and those that only pass through, do not notice.
        assert await connects(stranger.netns, far_friend.ip, CLOSED)
        assert await connects(far_stranger.netns, friend.ip, CLOSED)

        endpoint, policies, why = await introspect(one)
        assert (endpoint.host, endpoint.ingress_enforced, endpoint.egress_enforced) == (True, True, False)
        assert (endpoint.policy_revision_pending, endpoint.closed) == (0, "")
        assert "k8s:guarded=yes" in endpoint.labels
        assert [(p.name, list(p.endpoints), list(p.pending)) for p in policies] == [("nodes", [endpoint.id], [])]
        assert (why.destination, why.passes) == ("host", False)
        assert not (await introspect(two))[0].ingress_enforced
        assert (await cluster.status(one)).host_policed

        # A restarted agent changes nothing for the packets; the label gone, the policy is.
        await cluster.kill_agent(one)
        assert not await connects(cluster.router, here, CLOSED, WORLD)
        assert await connects(cluster.router, here, OPEN, WORLD)
        await cluster.start_agent(one)
        await cluster.ready(one)
        assert not await connects(cluster.router, here, CLOSED, WORLD)
        cluster.apply(node_object(one, guarded="no"))
        await becomes(cluster.router, here, CLOSED, WORLD, open_=True)

        # Egress: the node itself may go nowhere but to its friends, and pods go on.
        egress = [{"toEndpoints": [{"matchLabels": {"role": "friend"}}]}]
        closed = {**POLICY, "spec": {"nodeSelector": {}, "egress": egress}}
        cluster.apply(closed)
        await becomes(one.netns, there, OPEN, open_=False)
        assert await connects(one.netns, far_friend.ip, OPEN)
        assert not await connects(one.netns, far_stranger.ip, OPEN)
        assert await connects(stranger.netns, far_friend.ip, CLOSED)
        assert await connects(cluster.router, here, CLOSED, WORLD), "answers are no egress of its own"
