"""Clients outside of the cluster and real agents: node ports, load balancers and host ports, with SNAT and DSR."""

from __future__ import annotations

import asyncio
import ipaddress
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.agent.abi.ipcache import IpcacheKey, RemoteEndpointInfo
from services.agent.datapath.maps import PinnedMap
from services.model.addresses import prefix_to_key, to_bytes
from services.model.identity import Reserved
from tests.integration.agent.cluster import NETNS, Cluster, Pod, sh
from tests.integration.agent.test_egress_gateway import ASK, eventually

pytestmark = [pytest.mark.root, pytest.mark.etcd]

TARGET, NODE_PORT, PORT = 7400, 30400, 80
WHOAMI = str(Path(__file__).with_name("whoami.py"))
OUTSIDE = ("172.30.0.254", "fd00:172:30::fe")
VIRTUAL = "192.0.2.10"


WAYS: dict[str, dict[str, Any]] = {
    "snat": {"lb_mode": "snat"},
    "dsr": {"lb_mode": "dsr"},
    "geneve": {
        "lb_mode": "dsr",
        "lb_dsr_dispatch": "geneve",
        "routing_mode": "native",
        "auto_direct_node_routes": True,
    },
}


@pytest.fixture(params=WAYS)
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with Cluster(outside=True, **WAYS[request.param]) as cluster:
        yield cluster


def service(name: str, pods: list[Pod], node_port: int, **spec: Any) -> list[dict[str, Any]]:
    """A Service of both families and its slices."""
    metadata = {"name": name, "namespace": "default"}
    port = {"name": "main", "protocol": "TCP", "port": PORT, "targetPort": TARGET, "nodePort": node_port}
    status = {"loadBalancer": {"ingress": [{"ip": VIRTUAL}]}} if spec.get("type") == "LoadBalancer" else {}
    addresses = ["10.96.0.40", "fd00:10:96::40"]
    whole = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "NodePort",
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [port],
            **spec,
        },
        "status": status,
    }
    return [whole, *(slice_of(name, pods, family) for family in (0, 1))]


def slice_of(name: str, pods: list[Pod], family: int) -> dict[str, Any]:
    """The endpoints of one family."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{family}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": ("IPv4", "IPv6")[family],
        "ports": [{"name": "main", "port": TARGET, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [pod.addresses[family]], "nodeName": pod.node.name, "conditions": {"ready": True}}
            for pod in pods
        ],
    }


def apply(cluster: Cluster, manifests: list[dict[str, Any]]) -> None:
    for manifest in manifests:
        cluster.apply(manifest)


async def seen(cluster: Cluster, address: str, port: int) -> str:
    """Who the backend thinks that the client is; why not, when there is no answer."""
    words = ["nsenter", f"--net={NETNS / cluster.router}", "/usr/bin/python3", "-S", "-c", ASK]
    words += [address, str(port), "SOCK_STREAM"]
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=False)
    return (done.stdout.strip() or done.stderr.strip().rsplit("\n", 1)[-1]).strip()


async def sees(cluster: Cluster, address: str, port: int, expected: str) -> None:
    async def it_is() -> bool:
        return expected in await seen(cluster, address, port)

    try:
        await eventually(it_is)
    except TimeoutError:
        raise AssertionError(f"{address}:{port} saw {await seen(cluster, address, port)!r}, not {expected!r}") from None


LATE = "172.30.9.9"


def identities(cluster: Cluster) -> list[int]:
    """What each node takes `LATE` for; 0: nothing in particular."""
    length, raw = prefix_to_key(ipaddress.ip_network(LATE))
    key, found = IpcacheKey(prefixlen=length, address=raw).pack(), []
    for node in cluster.nodes:
        with PinnedMap(cluster.pins / node.name / "maps" / "ipcache") as table:
            value = dict(table.items()).get(key)
            found.append(int(RemoteEndpointInfo.unpack(value).identity) if value else 0)
    return found


async def an_address_comes_and_goes(cluster: Cluster) -> None:
    """The first node's device gets another address: node ports are there, it is the host's, other nodes know."""
    one = cluster.nodes[0]

    async def they_are(wanted: list[int]) -> bool:
        return identities(cluster) == wanted

    sh(f"ip route add {LATE} via {one.addresses[0]}", cluster.router)
    sh(f"ip addr add {LATE}/32 dev up0", one.netns)
    await sees(cluster, LATE, NODE_PORT, OUTSIDE[0] if cluster.options["lb_mode"] == "dsr" else one.addresses[0])
    await eventually(lambda: they_are([Reserved.HOST, Reserved.REMOTE_NODE]))
    sh(f"ip addr del {LATE}/32 dev up0", one.netns)
    await eventually(lambda: they_are([0, 0]))
    with PinnedMap(cluster.pins / one.name / "maps" / "services") as table:
        assert not [key for key, _ in table.items() if key.startswith(to_bytes(ipaddress.ip_address(LATE)))]


async def test_services_for_the_outside(cluster: Cluster) -> None:
    one, two = cluster.nodes
    direct = cluster.options["lb_mode"] == "dsr"
    pod = await cluster.add_pod("server", two, app="server")
    await cluster.spawn("/usr/bin/python3", "-S", WHOAMI, str(TARGET), *pod.addresses, netns=pod.netns)
    sh(f"ip route add {VIRTUAL} via {one.addresses[0]}", cluster.router)
    apply(cluster, service("everywhere", [pod], NODE_PORT, type="LoadBalancer"))
    for family in (0, 1):
        client, entrance = OUTSIDE[family], one.addresses[family]
        await sees(cluster, two.addresses[family], NODE_PORT, client)  # the backend is there
        await sees(cluster, entrance, NODE_PORT, client if direct else entrance)
    await sees(cluster, VIRTUAL, PORT, OUTSIDE[0] if direct else one.addresses[0])
    with PinnedMap(cluster.pins / one.name / "maps" / "nat_table") as table:
        assert table.count()

    await an_address_comes_and_goes(cluster)
    # Only where a backend is; other nodes say nothing, so that balancers in front of them leave them out.
    apply(cluster, service("everywhere", [pod], NODE_PORT, externalTrafficPolicy="Local"))
    await sees(cluster, one.addresses[0], NODE_PORT, "timed out")
    await sees(cluster, two.addresses[0], NODE_PORT, OUTSIDE[0])
    # Nobody serves it: refused at once.
    apply(cluster, service("everywhere", [], NODE_PORT))
    for node in cluster.nodes:
        await sees(cluster, node.addresses[0], NODE_PORT, "refused")
