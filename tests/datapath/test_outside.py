"""Clients and servers outside of the cluster, with real packets: every kind of forwarding over the overlay and over
routes, both families, TCP and UDP."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.all import Ether, IPOption, IPv6ExtHdrDestOpt

from services.agent.abi.lb import ServiceFlags
from services.model.verdict import DropReason
from tests.datapath.gateway import exclude, expose
from tests.datapath.node import Pod, ip, sh
from tests.datapath.outside import (
    CLIENT4,
    NODE_PORT,
    PORT,
    World,
    ask,
    build,
    client,
    close,
    forget_paths,
    heard,
    in_netns,
    narrow_between,
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


def fetch_large(world: World, v6: bool, narrow: bool) -> None:
    """A datagram of many fragments. Those of IPv6 nobody cuts: where the way is `narrow`, they have to be smaller."""
    if world.overlay and v6 and narrow:
        forget_paths(world.name)
        with pytest.raises(OSError, match="too long"):
            fetch(world, world.one.at(v6), NODE_PORT, UDP, size=7000)
    fetch(world, world.one.at(v6), NODE_PORT, UDP, size=7000)


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
        fetch_large(geneve, v6, narrow=True)
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
        fetch_large(world, v6, narrow=remote)


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


MTU = {False: (socket.IPPROTO_IP, 10, 14), True: (socket.IPPROTO_IPV6, 23, 24)}
"""(level, IP_MTU_DISCOVER, IP_MTU) of a socket."""


def learns(netns: str, source: str, target: str, port: int) -> list[int]:
    """What a client's socket, whose datagrams must not be cut, takes the way for, from the first of them to the one
    that is answered."""
    level, discover, mtu = MTU[":" in target]
    found = []
    with in_netns(netns, ":" in target, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(level, discover, 2)
        sock.bind((source, 0))
        sock.connect((target, port))
        for _ in range(3):
            found.append(sock.getsockopt(level, mtu))
            payload = os.urandom(found[-1] - (48 if ":" in target else 28))
            try:
                sock.send(payload)
                if sock.recv(65536) == payload:
                    return found
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
    raise AssertionError(f"nothing is answered: {found}")


def check_narrow_way(world: World, v6: bool, flags: int, over6: bool = False) -> None:
    world.one.events()
    with narrow_between(world, over6) as fits:
        for protocol in (UDP, TCP):
            publish(world, None, world.far, v6, protocol, flags)
        # A service's address in DSR's packets takes room, too.
        option = (24 if v6 else 8) if flags & ServiceFlags.DSR else 0
        own = world.one.at(v6)
        with serving(world.two.pod_ns(world.far), pod_at(world.far, v6), UDP):
            assert learns(world.name, client(v6), own, NODE_PORT) == [1500, fits - option]
        forget_paths(world.name)
        with serving(world.two.pod_ns(world.far), pod_at(world.far, v6), TCP):
            fetch(world, own, NODE_PORT, TCP, size=1_000_000)
        learnt = sh("ip", "route", "get", own, "from", client(v6), netns=world.name)
        assert f"mtu {fits}" in learnt
        too_large = [e for e in world.one.events() if e["drop_reason"] == DropReason.PACKET_TOO_LARGE]
        assert {int(e["service_id"]) for e in too_large} == {7}
        assert {bytes(e["daddr"]) for e in too_large} == {ip(own)}


@FAMILIES
@pytest.mark.parametrize("direct", [False, True], ids=["snat", "dsr"])
def test_a_narrow_way_to_the_backend(world: World, v6: bool, direct: bool) -> None:
    """The client is told what fits, and sends that."""
    check_narrow_way(world, v6, ServiceFlags.DSR if direct else 0)
    if world.overlay:
        withdraw(world)
        check_narrow_way(world, v6, ServiceFlags.DSR if direct else 0, over6=True)


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
def test_pods_are_reached_through_a_node(world: World, v6: bool) -> None:
    """By their own addresses: the node's stack forwards, and the overlay's programs know the way to the other node."""
    target = pod_at(world.far, v6)
    way = f"ip {'-6 ' if v6 else ''}route add {target} via {world.one.at(v6)} dev br0"
    sh(*way.split(), netns=world.name)
    try:
        for over6 in (False, True) if world.overlay else (False,):
            with narrow_between(world, over6) as fits, serving(world.two.pod_ns(world.far), target, UDP):
                found = learns(world.name, client(v6), target, PORT)
            assert (found[0], found[-1]) == (1500, fits)
    finally:
        sh(*way.replace("route add", "route del").split(), netns=world.name)


def test_datagrams_that_may_be_cut(world: World) -> None:
    """Nobody is told: the overlay's packet is cut, or the node's stack cuts the client's."""
    for flags in (0, ServiceFlags.DSR):
        publish(world, None, world.far, False, UDP, flags)
        with narrow_between(world), serving(world.two.pod_ns(world.far), world.far.ipv4, UDP) as seen:
            with in_netns(world.name, False, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.IPPROTO_IP, 10, 0)  # path MTU discovery: do not
                sock.bind((CLIENT4, 0))
                sock.connect((world.one.address, NODE_PORT))
                sock.settimeout(0.3)
                # The pod's own answer is too large at first.
                assert any(_echoed(sock, os.urandom(1455)) for _ in range(20))
                assert sock.getsockopt(socket.IPPROTO_IP, 14) == 1500
        assert set(seen) == {CLIENT4 if flags else world.one.address}


@contextmanager
def behind_a_narrow_link(world: World, v6: bool, inner: int) -> Iterator[tuple[str, str]]:
    """A namespace with an address, behind a router whose link to it has room for 1400 bytes; itself it thinks that they
    are `inner`."""
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
            f"ip link set out mtu {inner} up",
            f"ip addr add {hop[1]}/{112 if v6 else 24} dev out {'nodad' if v6 else ''}",
            f"ip addr add {target}/{bits} dev lo {'nodad' if v6 else ''}",
            f"ip {six}route add default via {hop[0]}",
        ):
            sh(*line.split(), netns=narrow)
        yield narrow, target
    finally:
        sh("ip", "netns", "del", narrow)
        sh("sh", "-c", "ip link del narrow 2>/dev/null || true", netns=world.name)


@FAMILIES
def test_a_narrow_way_out_there(world: World, v6: bool) -> None:
    """A router behind the node has less room: its word reaches the pod's stack, which sends less at once."""
    with behind_a_narrow_link(world, v6, 1400) as (narrow, target), serving(narrow, target, UDP) as seen:
        netns = world.one.pod_ns(world.near)
        with in_netns(netns, v6, socket.SOCK_DGRAM) as sock:
            level, option, _ = MTU[v6]
            sock.setsockopt(level, option, 2)  # path MTU discovery: do
            sock.connect((target, PORT))
            sock.settimeout(0.1)
            # The link is new: its first packets may be lost.
            assert any(_too_big(sock, b"x" * 1390) for _ in range(40))
            assert any(_echoed(sock, b"x" * 1300) for _ in range(40))
    assert set(seen) == {world.one.at(v6)}


def answers_shrink(world: World, v6: bool, backend: Pod, direct: bool) -> list[int]:
    """A backend answers a client behind a narrow way with datagrams that must not be cut: what it takes the way for,
    from the first answer to the one that arrives."""
    publish(world, None, backend, v6, UDP, ServiceFlags.DSR if direct else 0)
    level, discover, mtu = MTU[v6]
    found: list[int] = []
    with (
        behind_a_narrow_link(world, v6, 1500) as (narrow, _),
        in_netns(world.home(backend).pod_ns(backend), v6, socket.SOCK_DGRAM) as server,
        in_netns(narrow, v6, socket.SOCK_DGRAM) as asking,
    ):
        server.setsockopt(level, discover, 2)
        server.bind((pod_at(backend, v6), PORT))
        asking.connect((world.one.at(v6), NODE_PORT))
        asking.settimeout(0.2)
        server.settimeout(0.2)
        for _ in range(40):
            asking.send(b"?")
            try:
                server.connect(server.recvfrom(10)[1])
                size = server.getsockopt(level, mtu)
                found += [size] if size not in found else []
                server.send(b"x" * (size - (48 if v6 else 28)))
                if len(asking.recv(65536)) == size - (48 if v6 else 28):
                    return found
            except TimeoutError:
                continue  # the link is new: its first packets may be lost
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
    raise AssertionError(f"nothing arrives: {found}")


@FAMILIES
def test_clients_behind_a_narrow_way(world: World, v6: bool) -> None:
    """What a router on their side says of an answer reaches the pod that gave it, whichever way it had taken."""
    assert answers_shrink(world, v6, world.near, direct=False) == [1450, 1400]
    withdraw(world)
    for direct in (False, True):
        assert answers_shrink(world, v6, world.far, direct) == [1450, 1400]
        withdraw(world)
        forget_paths(world.two.pod_ns(world.far))
