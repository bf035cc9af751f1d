"""Clients and servers outside of the cluster, with real packets: every kind of forwarding over the overlay and over
routes, both families, TCP and UDP."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.all import Ether, IPOption, IPv6ExtHdrDestOpt

from services.agent.abi.lb import ServiceFlags
from tests.datapath.gateway import exclude, expose
from tests.datapath.node import sh
from tests.datapath.outside import (
    NODE_PORT,
    PORT,
    World,
    ask,
    build,
    client,
    close,
    heard,
    in_netns,
    pod_at,
    publish,
    serving,
    withdraw,
)
from tests.datapath.walks import FAMILIES

pytestmark = pytest.mark.root

TCP, UDP = 6, 17
PROTOCOLS = pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
LARGE = {TCP: 400_000, UDP: 1200}
LB = {False: "192.0.2.80", True: "2001:db8:80::1"}


@pytest.fixture(scope="module", params=[True, False], ids=["overlay", "native"])
def module_world(request: pytest.FixtureRequest, object_cache: Path) -> Iterator[World]:
    world = build(object_cache, request.param)
    try:
        for v6, address in LB.items():
            via = world.one.at(v6)
            sh(*f"ip {'-6 ' if v6 else ''}route add {address} via {via} dev br0".split(), netns=world.name)
        yield world
    finally:
        close(world.name, [world.one, world.two])


@pytest.fixture
def world(module_world: World) -> World:
    withdraw(module_world)
    return module_world


def fetch(world: World, target: str, port: int, protocol: int, size: int = 0) -> bytes:
    payload = os.urandom(size or LARGE[protocol])
    assert ask(world.name, client(":" in target), target, port, protocol, payload) == payload
    return payload


@FAMILIES
@PROTOCOLS
def test_node_port_with_a_local_backend(world: World, v6: bool, protocol: int) -> None:
    publish(world, None, world.near, v6, protocol)
    with serving(world.one.pod_ns(world.near), pod_at(world.near, v6), protocol) as seen:
        fetch(world, world.one.at(v6), NODE_PORT, protocol)
    assert seen == [client(v6)]  # the client itself


@FAMILIES
@PROTOCOLS
def test_node_port_with_a_remote_backend(world: World, v6: bool, protocol: int) -> None:
    publish(world, None, world.far, v6, protocol)
    with serving(world.two.pod_ns(world.far), pod_at(world.far, v6), protocol) as seen:
        fetch(world, world.one.at(v6), NODE_PORT, protocol)
    assert seen == [world.one.at(v6)]


@FAMILIES
@PROTOCOLS
def test_dsr(world: World, v6: bool, protocol: int) -> None:
    publish(world, None, world.far, v6, protocol, ServiceFlags.DSR)
    with serving(world.two.pod_ns(world.far), pod_at(world.far, v6), protocol) as seen:
        fetch(world, world.one.at(v6), NODE_PORT, protocol)
    assert seen == [client(v6)]
    # The entrance has one entry, the way there; the backend's node one, the way back.
    assert [node.map("nat_table").count() for node in world.nodes()] == [1, 1]


GENEVE = 6081


@pytest.fixture
def geneve(world: World) -> Iterator[World]:
    """Both nodes tell one another of clients in Geneve."""
    for node in world.nodes():
        node.configured(dsr_port=GENEVE)
    yield world
    for node in world.nodes():
        node.configured()


def ends(packet: Any) -> tuple[str, int]:
    """A packet's source."""
    return str(packet[1].src), int(packet[2].sport) if hasattr(packet[2], "sport") else 0


@FAMILIES
@PROTOCOLS
def test_dsr_in_geneve(geneve: World, v6: bool, protocol: int) -> None:
    """Nothing has options, and the answers come straight from the backend's node."""
    one, two, far = geneve.one, geneve.two, geneve.far
    balanced = protocol == UDP
    target, port = (LB[v6], 80) if balanced else (one.at(v6), NODE_PORT)
    publish(geneve, LB[v6] if balanced else None, far, v6, protocol, ServiceFlags.DSR, port=port)
    with heard(geneve, one) as at_entrance, heard(geneve, two) as at_backend:
        with serving(two.pod_ns(far), pod_at(far, v6), protocol) as seen:
            fetch(geneve, target, port, protocol, size=1200 if protocol == UDP else 30_000)
    assert seen == [client(v6)]
    assert [node.map("nat_table").count() for node in geneve.nodes()] == [1, 1]
    entrance, backend = [Ether(f) for f in at_entrance], [Ether(f) for f in at_backend]
    tunnelled = [p for p in backend if ends(p)[0] in (one.at(v6), one.at(False)) and p[2].dport == GENEVE]
    assert len(tunnelled) == 1, "what opens the connection, and nothing else"
    assert not any(IPOption in p or IPv6ExtHdrDestOpt in p for p in entrance + backend)
    assert (target, port) not in map(ends, entrance), "an answer came by the entrance"
    assert (target, port) in map(ends, backend)


@FAMILIES
def test_large_datagrams_with_dsr_in_geneve(geneve: World, v6: bool) -> None:
    """Their first fragment has no room: they open by SNAT. Small ones do not, nor does what follows them; over IPv6,
    where nobody cuts packets on the way, the client is told what fits."""
    publish(geneve, None, geneve.far, v6, UDP, ServiceFlags.DSR)
    with serving(geneve.two.pod_ns(geneve.far), pod_at(geneve.far, v6), UDP) as seen:
        fetch(geneve, geneve.one.at(v6), NODE_PORT, UDP, size=7000)
        with in_netns(geneve.name, v6, socket.SOCK_DGRAM) as sock:
            sock.bind((client(v6), 0))
            sock.connect((geneve.one.at(v6), NODE_PORT))
            for size in (100, 6000, 100):
                payload = os.urandom(size)
                if v6 and size > 1500:
                    assert _too_big(sock, payload)
                assert _echoed(sock, payload)
    assert seen == [geneve.one.at(v6), client(v6), client(v6), client(v6)]


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("direct", [False, True], ids=["snat", "dsr"])
def test_an_address_of_a_load_balancer(world: World, v6: bool, protocol: int, direct: bool) -> None:
    flags = ServiceFlags.DSR if direct else 0
    publish(world, LB[v6], world.far, v6, protocol, flags, port=80)
    with serving(world.two.pod_ns(world.far), pod_at(world.far, v6), protocol) as seen:
        fetch(world, LB[v6], 80, protocol)
    assert seen == [client(v6) if direct else world.one.at(v6)]


@FAMILIES
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_large_datagrams_travel_in_fragments(world: World, v6: bool, remote: bool) -> None:
    backend = world.far if remote else world.near
    publish(world, None, backend, v6, UDP)
    with serving(world.home(backend).pod_ns(backend), pod_at(backend, v6), UDP):
        fetch(world, world.one.at(v6), NODE_PORT, UDP, size=7000)


@FAMILIES
@PROTOCOLS
def test_another_node_as_the_client(world: World, v6: bool, protocol: int) -> None:
    """Its address has a tunnel: answers must not go there with the pod's address."""
    publish(world, None, world.near, v6, protocol)
    payload = os.urandom(LARGE[protocol])
    with serving(world.one.pod_ns(world.near), pod_at(world.near, v6), protocol):
        assert ask(world.two.name, "", world.one.at(v6), NODE_PORT, protocol, payload) == payload


@FAMILIES
@PROTOCOLS
def test_pods_reach_the_world_as_their_node(world: World, v6: bool, protocol: int) -> None:
    payload = os.urandom(LARGE[protocol])
    with serving(world.name, client(v6), protocol) as seen:
        assert ask(world.one.pod_ns(world.near), "", client(v6), PORT, protocol, payload) == payload
        assert ask(world.two.pod_ns(world.far), "", client(v6), PORT, protocol, payload) == payload
    assert seen == [world.one.at(v6), world.two.at(v6)]


@FAMILIES
def test_pods_reach_one_another_as_themselves(world: World, v6: bool) -> None:
    payload = os.urandom(LARGE[TCP])
    with serving(world.two.pod_ns(world.far), pod_at(world.far, v6), TCP) as seen:
        assert ask(world.one.pod_ns(world.near), "", pod_at(world.far, v6), PORT, TCP, payload) == payload
    assert seen == [pod_at(world.near, v6)]


@FAMILIES
def test_excluded_destinations_see_the_pod(world: World, v6: bool) -> None:
    exclude(world.one, f"{client(v6)}/{128 if v6 else 32}")
    way = f"ip {'-6 ' if v6 else ''}route add {pod_at(world.near, v6)} via {world.one.at(v6)} dev br0"
    sh(*way.split(), netns=world.name)
    try:
        with serving(world.name, client(v6), TCP) as seen:
            payload = os.urandom(1000)
            assert ask(world.one.pod_ns(world.near), "", client(v6), PORT, TCP, payload) == payload
        assert seen == [pod_at(world.near, v6)]
    finally:
        sh(*way.replace("route add", "route del").split(), netns=world.name)
        table = world.one.map("no_masquerade")
        table.delete_batch([key for key, _ in table.items()])


@FAMILIES
def test_large_masqueraded_datagrams(world: World, v6: bool) -> None:
    with serving(world.name, client(v6), UDP) as seen:
        payload = os.urandom(5000)
        assert ask(world.one.pod_ns(world.near), "", client(v6), PORT, UDP, payload) == payload
    assert seen == [world.one.at(v6)]


@FAMILIES
def test_a_closed_port_out_there_is_told_to_the_pod(world: World, v6: bool) -> None:
    with pytest.raises(ConnectionRefusedError):
        ask(world.one.pod_ns(world.near), "", client(v6), 9, UDP, b"x")
    with pytest.raises(ConnectionRefusedError):
        ask(world.one.pod_ns(world.near), "", client(v6), 9, TCP, b"x")


@FAMILIES
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_a_closed_port_of_a_backend_is_told_to_the_client(world: World, v6: bool, remote: bool) -> None:
    for protocol in (UDP, TCP):
        publish(world, None, world.far if remote else world.near, v6, protocol)
        with pytest.raises(ConnectionRefusedError):
            ask(world.name, client(v6), world.one.at(v6), NODE_PORT, protocol, b"x")


@FAMILIES
def test_a_service_without_backends_is_refused_at_once(world: World, v6: bool) -> None:
    for protocol in (UDP, TCP):
        for node in world.nodes():
            expose(node, 7, node.at(v6), NODE_PORT, [], protocol, ServiceFlags.REFUSE)
        started = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            ask(world.name, client(v6), world.one.at(v6), NODE_PORT, protocol, b"x")
        assert time.monotonic() - started < 0.5


@FAMILIES
def test_pods_can_ping_the_world(world: World, v6: bool) -> None:
    sh("ping", "-c1", "-W2", client(v6), netns=world.one.pod_ns(world.near))


def _too_big(sock: socket.socket, payload: bytes) -> bool:
    try:
        sock.send(payload)
        sock.recv(65536)
    except TimeoutError:
        return False
    except OSError as error:
        return error.errno == errno.EMSGSIZE
    return False


def _echoed(sock: socket.socket, payload: bytes) -> bool:
    sock.send(payload)
    try:
        return sock.recv(65536) == payload
    except TimeoutError:
        return False


@FAMILIES
def test_a_narrow_way_out_there(world: World, v6: bool) -> None:
    """A router behind the node has less room: its word reaches the pod's stack, which sends less at once."""
    target = "2001:db8:5::5" if v6 else "198.51.100.5"
    narrow = f"{world.name}n"
    sh("ip", "netns", "add", narrow)
    try:
        sh(*f"ip link add narrow type veth peer name out netns {narrow}".split(), netns=world.name)
        six, bits = ("-6 ", 128) if v6 else ("", 32)
        hop = ("2001:db8:6::1", "2001:db8:6::2") if v6 else ("198.51.101.1", "198.51.101.2")
        for line in (
            "ip link set narrow mtu 1400 up",
            f"ip addr add {hop[0]}/{112 if v6 else 24} dev narrow {'nodad' if v6 else ''}",
            f"ip {six}route add {target}/{bits} via {hop[1]}",
        ):
            sh(*line.split(), netns=world.name)
        for line in (
            "ip link set lo up",
            "ip link set out mtu 1400 up",
            f"ip addr add {hop[1]}/{112 if v6 else 24} dev out {'nodad' if v6 else ''}",
            f"ip addr add {target}/{bits} dev lo {'nodad' if v6 else ''}",
            f"ip {six}route add default via {hop[0]}",
        ):
            sh(*line.split(), netns=narrow)
        with serving(narrow, target, UDP) as seen:
            netns = world.one.pod_ns(world.near)
            with in_netns(netns, v6, socket.SOCK_DGRAM) as sock:
                level, option = (socket.IPPROTO_IPV6, 23) if v6 else (socket.IPPROTO_IP, 10)
                sock.setsockopt(level, option, 2)  # path MTU discovery: do
                sock.connect((target, PORT))
                sock.settimeout(0.1)
                # The link is new: its first packets may be lost.
                assert any(_too_big(sock, b"x" * 1390) for _ in range(40))
                assert any(_echoed(sock, b"x" * 1300) for _ in range(40))
        assert set(seen) == {world.one.at(v6)}
    finally:
        sh("ip", "netns", "del", narrow)
        sh("sh", "-c", "ip link del narrow 2>/dev/null || true", netns=world.name)
