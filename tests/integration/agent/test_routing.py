"""How pods' packets get to other nodes: native routes and the overlay, their MTU, and what a smaller link does."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial
from pathlib import Path

import pytest

from tests.integration.agent.cluster import Cluster, Node, Pod, in_pod, network_policy, sh
from tests.integration.agent.conftest import Load
from tests.integration.agent.reach import PORT, connects, eventually

pytestmark = [pytest.mark.root, pytest.mark.etcd]

NATIVE = {"routing_mode": "native", "auto_direct_node_routes": True}
TRAFFIC = str(Path(__file__).with_name("path.py"))


def routes(node: Node) -> set[str]:
    """The routes that the agent made."""
    both = sh("ip route show proto 99; ip -6 route show proto 99", node.netns)
    return {" ".join(line.split()[: 3 if " via " in line else 4]) for line in both.splitlines()}


def mtu(pod: Pod) -> tuple[int, int]:
    """Of the pod's side, and of the node's."""
    inside = json.loads(sh("ip -j link show eth0", pod.netns))[0]
    outside = json.loads(sh("ip -j link", pod.node.netns))
    peer = next(link for link in outside if link["ifindex"] == inside["link_index"])
    return inside["mtu"], peer["mtu"]


RANGES_OF_2 = {"10.244.2.0/24 via 172.30.0.2", "fd00:10:244:2::/64 via fd00:172:30::2"}
OWN_RANGES = {"unreachable 10.244.1.0/24 metric 2042", "unreachable fd00:10:244:1::/64 dev lo"}


async def test_native_routes_come_and_go() -> None:
    async with Cluster(**NATIVE) as cluster:
        one, two = cluster.nodes
        near, far = await cluster.add_pod("near", one, app="client"), await cluster.add_pod("far", two, app="server")
        load = await Load.start(far, "serve", "::", PORT)
        for address in far.addresses:
            await eventually(partial(connects, near, address))
        assert routes(one) == RANGES_OF_2 | OWN_RANGES
        assert "vxlan" not in sh("ip -d link", one.netns)
        assert mtu(near) == (1500, 1500)
        # Identities are those of the pods, also where no overlay names them.
        cluster.apply(network_policy("servers", "server", "nobody", PORT))
        for address in far.addresses:
            await eventually(partial(refuses, near, address))
        cluster.pod_object("near", one, {"role": "nobody"})
        for address in far.addresses:
            await eventually(partial(connects, near, address))
        # Nobody but this node's pods has this node's addresses.
        assert in_pod(near, "ping", "-c1", "-W1", "10.244.1.250").returncode == 1
        sh(f"ping -c1 -W1 {near.ip}", one.netns)
        await other_peoples_routes_and_a_restart(cluster, one)
        # A node that is gone, but for its pods, which are gone when their rows are.
        cluster.remove("Node", "node2")
        await eventually(
            lambda: are(one, {f"{far.addresses[0]} via 172.30.0.2", f"{far.addresses[1]} via fd00:172:30::2"})
        )
        assert await cluster.cni("DEL", far) == (0, {})
        await eventually(lambda: are(one, set()))
        await load.kill()


async def refuses(source: Pod, address: str) -> bool:
    return not await connects(source, address)


async def are(node: Node, expected: set[str]) -> bool:
    return routes(node) == expected | OWN_RANGES


async def other_peoples_routes_and_a_restart(cluster: Cluster, one: Node) -> None:
    theirs = "ip route add 10.244.2.0/24 via 172.30.0.77 metric 3000; ip route add 10.7.0.0/16 via 172.30.0.77"
    sh(theirs, one.netns)
    await cluster.kill_agent(one)
    sh("ip route del 10.244.2.0/24 proto 99; ip route add 10.99.0.0/16 dev up0 proto 99", one.netns)
    await cluster.start_agent(one)
    await cluster.ready(one)
    await eventually(lambda: are(one, RANGES_OF_2))
    # A link that was down loses its routes.
    sh("ip link set up0 down; ip link set up0 up; ip addr replace fd00:172:30::1/64 dev up0 nodad", one.netns)
    await eventually(lambda: are(one, RANGES_OF_2), 10)
    assert re.search(r"10.244.2.0/24 via 172.30.0.77", sh("ip route", one.netns)) is None  # the link took it, not we
    sh(theirs.replace("ip route add", "ip route replace"), one.netns)
    cluster.node_object(cluster.nodes[1], zone="b")
    await asyncio.sleep(0.3)
    assert sh("ip route", one.netns).count("via 172.30.0.77") == 2


@pytest.mark.parametrize(("mode", "overhead"), [("native", 0), ("tunnel", 50), ("tunnel", 70)])
async def test_pods_follow_the_uplinks_mtu(mode: str, overhead: int) -> None:
    async with Cluster(1, six_first=overhead == 70, **(NATIVE if mode == "native" else {})) as cluster:
        [node] = cluster.nodes
        pod = await cluster.add_pod("a", node)
        for size in (1400, 9000):
            sh(f"ip link set up0 mtu {size}", node.netns)
            await eventually(lambda size=size: has_mtu(pod, size - overhead))  # type: ignore[misc]
        if overhead:
            assert f"mtu {9000 - overhead}" in sh("ip link show ciliate_vxlan", node.netns)
        assert mtu(await cluster.add_pod("b", node)) == (9000 - overhead, 9000 - overhead)
        await cluster.kill_agent(node)
        sh("ip link set up0 mtu 1500", node.netns)
        await cluster.start_agent(node)
        await cluster.ready(node)
        await eventually(lambda: has_mtu(pod, 1500 - overhead))


async def has_mtu(pod: Pod, size: int) -> bool:
    return mtu(pod) == (size, size)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param({"narrow": 1400, **NATIVE, "auto_direct_node_routes": False}, 1400, id="native, narrow link"),
        pytest.param({"narrow": 1400}, 0, id="overlay, narrow link"),
        pytest.param({"mtu": 1500}, 1450, id="overlay, pods with too large an MTU"),
        pytest.param({"narrow": 1400, "six_first": True}, 1330, id="overlay over IPv6, narrow link"),
        pytest.param({"mtu": 1500, "six_first": True}, 1430, id="overlay over IPv6, pods with too large an MTU"),
    ],
)
async def test_path_mtu(options: dict[str, int], told: int) -> None:
    """`told`: what a pod learns of the way. 0: nothing, the nodes' own packets are cut and put together."""
    async with Cluster(**options) as cluster:
        one, two = cluster.nodes
        near, far = await cluster.add_pod("near", one), await cluster.add_pod("far", two)
        server = await cluster.spawn("/usr/bin/python3", "-S", TRAFFIC, "serve", netns=far.netns)
        for address in far.addresses:
            done = await asyncio.to_thread(
                in_pod, near, "/usr/bin/python3", "-S", TRAFFIC, "probe", address, seconds=50
            )
            assert done.returncode == 0, f"{done.stderr}\n{cluster.log(one)}"
            found = json.loads(done.stdout)
            assert found["tcp_bytes"] == 1_000_000
            assert found["tcp_seconds"] < 15
            assert found["udp"] == "received"
            assert found["udp_mtu"] == (told or mtu(near)[0])
            assert found["tcp_mtu"] == (told or mtu(near)[0])
        assert server.returncode is None
