"""A node at work: the CNI plugin against a real agent, pods that talk, relabelled pods, what people are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc.aio
import pytest

from services.common.pb.agent.v1 import agent_pb2 as pb
from services.common.pb.agent.v1 import agent_pb2_grpc
from services.common.tls import channel
from tests.integration.agent.cluster import Cluster, Node, Pod, in_pod, network_policy, sh
from tests.integration.agent.conftest import Load
from tests.integration.agent.reach import PORT, connects, eventually

pytestmark = [pytest.mark.root, pytest.mark.etcd]


@pytest.fixture
async def served(cluster: Cluster) -> AsyncIterator[tuple[Pod, Pod]]:
    """A server on each node."""
    near, far = cluster.nodes
    servers = await cluster.add_pod("near", near, app="server"), await cluster.add_pod("far", far, app="server")
    loads = [await Load.start(server, "serve", "::", PORT) for server in servers]
    yield servers
    for load in loads:
        await load.kill()


async def ask(node: Node, method: str, request: Any) -> Any:
    async with channel(node.target, None, "agent") as there:
        stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
        return await getattr(stub, method)(request, timeout=5)


async def test_pods_talk_policy_decides_labels_move(cluster: Cluster, served: tuple[Pod, Pod]) -> None:
    near, far = served
    node = near.node
    client = await cluster.add_pod("client", node, role="client")
    stranger = await cluster.add_pod("stranger", node, role="stranger")
    everywhere = [address for server in served for address in server.addresses]
    for address in everywhere:
        await eventually(partial(connects, stranger, address))
    # The node and its pods reach each other, and so does the other node.
    for host in cluster.nodes:
        sh(f"ping -c1 -W1 {near.ip}", host.netns)
        assert in_pod(client, "ping", "-c1", "-W1", f"172.30.0.{host.number}").returncode == 0
    cluster.apply(network_policy("servers", "server", "client", PORT))
    await eventually(lambda: refused(stranger, everywhere))
    assert all([await connects(client, address) for address in everywhere])
    cluster.pod_object("stranger", node, {"role": "client"})
    await eventually(lambda: connects(stranger, far.ip))
    cluster.pod_object("client", node, {"role": "nobody"})
    await eventually(lambda: refused(client, everywhere))
    cluster.remove("NetworkPolicy", "servers")
    await eventually(lambda: connects(client, near.ip))
    await said_to_people(cluster, node)


async def refused(source: Pod, addresses: list[str]) -> bool:
    return not any([await connects(source, address) for address in addresses])


async def said_to_people(cluster: Cluster, node: Node) -> None:
    cluster.apply(network_policy("servers", "server", "client", PORT))
    await eventually(lambda: has_policy(node))
    endpoints = (await ask(node, "ListEndpoints", pb.ListEndpointsRequest())).endpoints
    assert [endpoint.pod for endpoint in endpoints if not endpoint.host] == ["near", "client", "stranger"]
    assert [endpoint.identity for endpoint in endpoints if endpoint.host] == [1]
    near = (await ask(node, "GetEndpoint", pb.GetEndpointRequest(endpoint="near"))).endpoint
    assert (near.ingress_enforced, near.egress_enforced, near.state) == (True, False, "ready")
    assert "k8s:app=server" in near.labels
    answer = await ask(node, "GetPolicy", pb.GetPolicyRequest(endpoint=near.addresses[0]))
    allowing = [entry for entry in answer.entries if entry.direction == "ingress" and entry.port == PORT]
    assert {(entry.verdict, entry.protocol, entry.rule.name) for entry in allowing} == {("allow", "TCP", "servers")}
    assert [rule.name for rule in answer.isolating_ingress] == ["servers"]
    [policy] = (await ask(node, "ListPolicies", pb.ListPoliciesRequest())).policies
    assert (policy.name, list(policy.endpoints), policy.error) == ("servers", [near.id], "")
    assert policy.origin.endswith(".yaml:1")
    identities = (await ask(node, "ListIdentities", pb.ListIdentitiesRequest())).identities
    assert len({identity.id for identity in identities}) == len(identities)
    assert near.id in next(identity for identity in identities if identity.id == near.identity).endpoints
    for kind, least in ((pb.MAP_KIND_POLICY, 3), (pb.MAP_KIND_CT, 4), (pb.MAP_KIND_IPCACHE, 12), (pb.MAP_KIND_LB, 0)):
        assert await rows(node, pb.DumpMapRequest(map=kind)) >= least
    assert await rows(node, pb.DumpMapRequest(map=pb.MAP_KIND_POLICY, endpoint="near")) >= 1
    with pytest.raises(grpc.aio.AioRpcError, match="here are: default/client, default/near, default/stranger"):
        await ask(node, "GetEndpoint", pb.GetEndpointRequest(endpoint="nobody"))
    assert node.run_dir.joinpath("agent.sock").stat().st_mode & 0o777 == 0o600


async def has_policy(node: Node) -> bool:
    found = (await ask(node, "GetEndpoint", pb.GetEndpointRequest(endpoint="near"))).endpoint
    return bool(found.ingress_enforced)


async def rows(node: Node, request: pb.DumpMapRequest) -> int:
    count = 0
    async with channel(node.target, None, "agent") as there:
        stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
        columns = 0
        async for part in stub.DumpMap(request):
            if part.HasField("header"):
                columns = len(part.header.columns)
            else:
                assert len(part.row.cells) == columns
                count += 1
    return count


async def test_the_runtime_and_the_agent(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    pods = await asyncio.gather(*(cluster.add_pod(f"p{n}", node, app="many") for n in range(8)))
    assert len({pod.ip for pod in pods}) == 8
    pod = pods[0]
    # Again, as a runtime does that got no answer: the same interface, the same addresses.
    status, again = await cluster.cni("ADD", pod)
    assert (status, [ip["address"].partition("/")[0] for ip in again["ips"]]) == (0, pod.addresses)
    assert await cluster.cni("CHECK", pod) == (0, {})
    sh("ip addr del " + pod.ip + "/32 dev eth0", pod.netns)
    status, answer = await cluster.cni("CHECK", pod)
    assert (status, answer["code"]) == (1, 3)
    assert pod.ip in answer["msg"]
    # A namespace that is not there, a pod that nobody has told about.
    missing = Pod("p1", node, "clt-no-such-namespace", {})
    missing.name = "p99"
    cluster.pod_object("p99", node, {})
    status, answer = await cluster.cni("ADD", missing)
    assert (status, answer["code"]) == (1, 4)
    assert "cannot open" in answer["msg"]
    for pod in pods:
        assert await cluster.cni("DEL", pod) == (0, {})
        assert await cluster.cni("DEL", pod) == (0, {})
    assert "alias ciliate:" not in sh("ip -o -d link", node.netns)
    status = await cluster.status(node)
    assert (status.endpoints, status.addresses_used) == (0, 0)
    await eventually(lambda: nobody_left(cluster))


async def nobody_left(cluster: Cluster) -> bool:
    """The cluster's table has the nodes, the world, and no pod any more."""
    statuses = [await cluster.status(node) for node in cluster.nodes]
    return all(usage.entries == 6 for s in statuses for usage in s.maps if usage.name == "ipcache")


async def test_without_the_identity_service(cluster: Cluster, served: tuple[Pod, Pod]) -> None:
    near, far = served
    client = await cluster.add_pod("client", near.node, role="client")
    await eventually(lambda: connects(client, far.ip))
    cluster.identity.kill()
    await cluster.identity.wait()
    # Policy goes on being computed and enforced; who is known stays known.
    cluster.apply(network_policy("servers", "server", "nobody", PORT))
    await eventually(lambda: refused(client, [near.ip, far.ip]))
    cluster.apply(network_policy("servers", "server", "client", PORT))
    await eventually(lambda: connects(client, far.ip))
    components = {c.name: c for c in (await cluster.status(near.node)).components}
    assert components["identities"].health == pb.HEALTH_DEGRADED
    newcomer = Pod("newcomer", near.node, f"{cluster.prefix}newcomer", {})
    sh(f"ip netns add {newcomer.netns}")
    cluster.pods["newcomer"] = newcomer
    cluster.pod_object("newcomer", near.node, {"role": "new"})
    status, answer = await cluster.cni("ADD", newcomer)
    assert (status, answer["code"]) == (1, 11)
    await cluster.start_identity()

    async def added() -> bool:
        return (await cluster.cni("ADD", newcomer))[0] == 0

    await eventually(added, 15)
    assert not await connects(newcomer, near.ip)
