"""Services at the socket: real sockets below a cgroup with the hooks on it, both families and mapped addresses."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from services.agent.abi.events import FLOW_EVENT, EventType
from services.agent.abi.layout import be16
from services.agent.abi.lb import ServiceFlags
from services.agent.datapath import syscall
from services.agent.datapath.cgroup import SocketHooks
from services.agent.datapath.sock_sweep import SocketSweeper
from services.agent.events.reader import RingReader
from services.common.errors import NotFound
from services.common.netns import netns_cookie
from services.model.verdict import DropReason
from tests.datapath.node import Node, ip, sh
from tests.datapath.socketed import Cgroup, Servers, Services, call, hooked

pytestmark = pytest.mark.root

VIP = {4: "10.96.0.1", 6: "fd00:96::1"}
BACKENDS = {4: ["10.99.0.1", "10.99.0.2"], 6: ["fd00:99::1", "fd00:99::2"]}
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


@dataclass
class Rig:
    node: Node
    cgroup: Cgroup
    hooks: SocketHooks
    services: Services

    def run(self, work):  # type: ignore[no-untyped-def]
        return self.cgroup.run(self.node.name, work)


@pytest.fixture(scope="module")
def rig(module_node: Node) -> Iterator[Rig]:
    name = module_node.name
    sh("ip", "link", "set", "lo", "up", netns=name)
    for address in BACKENDS[4]:
        sh("ip", "addr", "add", f"{address}/32", "dev", "lo", netns=name)
    for address in BACKENDS[6]:
        sh("ip", "addr", "add", f"{address}/128", "dev", "lo", "nodad", netns=name)
    servers = Servers(name)
    for address in BACKENDS[4] + BACKENDS[6]:
        servers.add(address, 8080)
        servers.add(address, 5353, udp=True)
    with hooked(module_node.root, name) as (cgroup, hooks):
        yield Rig(module_node, cgroup, hooks, Services(module_node.map))
    servers.close()


@pytest.fixture(autouse=True)
def services(rig: Rig, node: Node) -> Services:
    for name in ("sockets", "affinity"):
        rig.node.map(name).delete_batch([key for key, _ in rig.node.map(name).items()])
    number = 0
    for family, vip in VIP.items():
        for protocol, port, target in ((TCP, 80, 8080), (UDP, 53, 5353)):
            number += 1
            rig.services.put(number, (vip, port), [(b, target) for b in BACKENDS[family]], protocol)
        rig.services.wildcard(vip)
    return rig.services


FORMS = [(4, VIP[4], socket.AF_INET), (6, VIP[6], socket.AF_INET6), (4, f"::ffff:{VIP[4]}", socket.AF_INET6)]
IDS = ["ipv4", "ipv6", "mapped"]


@pytest.mark.parametrize(("version", "address", "family"), FORMS, ids=IDS)
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_a_client_reaches_all_backends_and_never_learns_of_them(
    rig: Rig, version: int, address: str, family: int, udp: bool
) -> None:
    target = (address, 53 if udp else 80)
    results = rig.run(lambda: [call(target, family, udp) for _ in range(40)])
    assert not [result for result in results if "error" in result]
    assert {result["answer"].split()[0] for result in results} == set(BACKENDS[version])
    assert {result["peer"] for result in results} == {target}
    if udp:
        assert {result["source"] for result in results} == {target}
    assert not rig.services.sockets(), "sockets that were closed are forgotten"
    seen = rig.node.map("sock_ports").lookup(bytes(4)) or b""
    of_backends = {8080 >> 8, 5353 >> 8}
    assert {(5353 if udp else 8080) >> 8} <= {i for i, value in enumerate(seen) if value} <= of_backends


@pytest.mark.parametrize(("version", "address", "family"), FORMS, ids=IDS)
def test_udp_without_connect_is_answered_by_the_service(rig: Rig, version: int, address: str, family: int) -> None:
    def work() -> list[tuple[str, tuple[str, int]]]:
        with socket.socket(family, socket.SOCK_DGRAM) as made:
            made.settimeout(3)
            found = []
            for _ in range(40):
                made.sendto(b"?", (address, 53))
                answer, source = made.recvfrom(100)
                found.append((answer.decode().split()[0], source[:2]))
            return found

    results = rig.run(work)
    assert {source for _, source in results} == {(address, 53)}
    assert {name for name, _ in results} == set(BACKENDS[version])


@pytest.mark.parametrize(("version", "address", "family"), FORMS, ids=IDS)
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_what_is_no_service_is_left_alone(rig: Rig, version: int, address: str, family: int, udp: bool) -> None:
    backend = BACKENDS[version][0]
    target = (f"::ffff:{backend}" if address.startswith("::ffff:") else backend, 5353 if udp else 8080)
    result = rig.run(lambda: call(target, family, udp))
    assert (result["answer"].split()[0], result["peer"]) == (backend, target)


@pytest.mark.parametrize(("version", "address", "family"), FORMS, ids=IDS)
def test_no_backend_and_no_such_port_are_refused_at_once(rig: Rig, version: int, address: str, family: int) -> None:
    for protocol, port in ((TCP, 81), (UDP, 54)):
        rig.services.put(100 + port, (VIP[version], port), [], protocol)
    local_only = {"protocol": TCP, "flags": int(ServiceFlags.LOCAL)}  # none here, some elsewhere
    rig.services.put(200, (VIP[version], 82), [], **local_only)

    def work() -> list[int]:
        tcp = [call((address, port), family)["errno"] for port in (81, 82, 999)]
        udp = [call((address, port), family, udp=True)["errno"] for port in (54, 999)]
        with socket.socket(family, socket.SOCK_DGRAM) as made:
            for port in (54, 999):
                try:
                    made.sendto(b"?", (address, port))
                except OSError as error:
                    udp.append(error.errno or 0)
        return tcp + udp

    refused = errno.ECONNREFUSED
    assert rig.run(work) == [refused, errno.EHOSTUNREACH, *[refused] * 5]


def test_who_is_refused_leaves_a_record(rig: Rig) -> None:
    """With the Service, and with the network namespace that tells whose it was."""
    rig.services.put(171, (VIP[4], 85), [], TCP)
    rig.services.put(172, (VIP[6], 86), [], UDP, flags=int(ServiceFlags.LOCAL))
    ring = RingReader.open(rig.node.map("sock_events").fd, FLOW_EVENT)
    try:
        ring.read(1 << 12)
        rig.run(lambda: [call((VIP[4], 85)), call((VIP[6], 86), udp=True), call((VIP[4], 999)), call((VIP[4], 80))])
        records = ring.read(1 << 12)
    finally:
        ring.close()
    wanted = [(VIP[4], 85, TCP, 171), (VIP[6], 86, UDP, 172), (VIP[4], 999, TCP, 0)]
    found = [(r["daddr"].tobytes(), int(r["dport"]), int(r["protocol"]), int(r["service_id"])) for r in records]
    assert found == [(ip(address), port, protocol, number) for address, port, protocol, number in wanted]
    assert set(records["type"]) == {EventType.DROP}
    assert set(records["drop_reason"]) == {DropReason.SERVICE_BACKEND_NOT_FOUND}
    assert set(records["bytes"][:, 0]) == {rig.run(netns_cookie)}


def node_port(rig: Rig, netns: int) -> None:
    """Ports 30080 (TCP) and 30053 (UDP) are node ports and 8090 is a host port; `netns` is the node's."""
    rig.node.settings(netns=netns)
    for version, address in ((4, "0.0.0.0"), (6, "::")):
        backends = [(b, 8080) for b in BACKENDS[version]]
        rig.services.put(300 + version, (address, 30080), backends, flags=ServiceFlags.NODE_PORT)
        rig.services.put(310 + version, (address, 8090), backends[:1], flags=ServiceFlags.HOST_PORT)
        udp = [(b, 5353) for b in BACKENDS[version]]
        rig.services.put(320 + version, (address, 30053), udp, UDP, flags=ServiceFlags.NODE_PORT)
    for address, identity in (("172.31.0.2", 6), ("fd00:31::2", 6), ("172.31.0.3", 9), ("172.31.0.4", 1)):
        rig.node.ipcache(address, identity)


LOOPBACK = [
    (4, "127.0.0.1", socket.AF_INET),
    (4, "127.9.9.9", socket.AF_INET),
    (4, "0.0.0.0", socket.AF_INET),
    (6, "::1", socket.AF_INET6),
    (6, "::", socket.AF_INET6),
    (4, "::ffff:127.0.0.1", socket.AF_INET6),
]


@pytest.mark.parametrize(("version", "address", "family"), LOOPBACK)
def test_node_ports_are_at_loopback_for_the_nodes_own_processes(
    rig: Rig, version: int, address: str, family: int
) -> None:
    node_port(rig, rig.run(netns_cookie))
    for port, wanted in ((30080, set(BACKENDS[version])), (8090, {BACKENDS[version][0]})):
        results = rig.run(lambda port=port: [call((address, port), family) for _ in range(30)])
        assert {result.get("answer", "-").split()[0] for result in results} == wanted, results[:2]
        assert {result["peer"] for result in results} == {(address, port)}
    assert rig.run(lambda: call((address, 30053), family, udp=True))["answer"].split()[0] in BACKENDS[version]
    # To a pod the same address is its own.
    node_port(rig, rig.run(netns_cookie) + 1)
    assert rig.run(lambda: call((address, 30080), family))["errno"] == errno.ECONNREFUSED


def test_node_ports_of_other_nodes_are_resolved_at_the_socket(rig: Rig) -> None:
    """And of addresses of this node that have no entry of their own. Host ports are their node's alone."""
    node_port(rig, 0)

    def work() -> list[str]:
        places = [("172.31.0.2", 30080), ("fd00:31::2", 30080), ("172.31.0.4", 30080)]
        return [call(place)["answer"].split()[0] for place in places]

    four, six, own = rig.run(work)
    assert (four in BACKENDS[4], six in BACKENDS[6], own in BACKENDS[4]) == (True, True, True)
    left_alone = [("172.31.0.3", 30080), ("172.31.0.2", 8090), ("172.31.0.2", 30081)]
    assert rig.run(lambda: [call(place)["errno"] for place in left_alone]) == [errno.ENETUNREACH] * 3


def test_a_client_with_affinity_keeps_its_backend_until_the_time_is_over(rig: Rig) -> None:
    backends = [(b, 8080) for b in BACKENDS[4]]
    rig.services.put(50, (VIP[4], 83), backends, flags=ServiceFlags.AFFINITY, affinity_s=100)
    rig.services.slots(50, backends)
    names = rig.run(lambda: Counter(call((VIP[4], 83))["answer"].split()[0] for _ in range(30)))
    assert len(names) == 1
    assert rig.run(lambda: Counter(call((VIP[4], 83))["answer"].split()[0] for _ in range(30))) == names
    # Another network namespace is another client; it may get the other backend, and keeps it likewise.
    left = [b for b in backends if b[0] not in names]
    rig.services.slots(50, backends, remove=True)
    rig.services.put(50, (VIP[4], 83), left, flags=ServiceFlags.AFFINITY, affinity_s=100)
    rig.services.slots(50, left)
    assert set(rig.run(lambda: Counter(call((VIP[4], 83))["answer"].split()[0] for _ in range(10)))) == {left[0][0]}


def test_nothing_is_left_of_connections_that_failed_or_were_made_anew(rig: Rig) -> None:
    rig.services.put(70, (VIP[4], 84), [(BACKENDS[4][0], 1)])  # nobody listens there

    def work() -> list[int]:
        failed = [call((VIP[4], 84))["errno"] for _ in range(5)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            for _ in range(20):
                made.connect((VIP[4], 53))
            return [*failed, len(rig.services.sockets())]

    assert rig.run(work) == [errno.ECONNREFUSED] * 5 + [1]
    assert not rig.services.sockets()


def test_sockets_outside_of_the_cgroup_are_not_touched(rig: Rig) -> None:
    elsewhere = Cgroup(f"{rig.node.name}x")
    try:
        assert elsewhere.run(rig.node.name, lambda: call((VIP[4], 80)))["errno"] == errno.ENETUNREACH
    finally:
        elsewhere.close()


def test_an_agent_that_comes_back_replaces_the_programs_in_place(rig: Rig, node: Node) -> None:
    def links() -> dict[str, int]:
        found = {}
        for pin in (node.root / "links").iterdir():
            fd = syscall.obj_get(pin)
            found[pin.name] = syscall.cgroup_link_info(fd).program
            os.close(fd)
        return found

    before = links()
    again = SocketHooks(node.root, rig.cgroup.path)
    assert again.attached == sorted(before)
    again.attach()
    assert links() == before, "the same programs: replaced by themselves"
    assert rig.run(lambda: call((VIP[4], 80)))["peer"] == (VIP[4], 80)


def test_links_to_a_cgroup_that_is_gone_are_made_anew(node: Node) -> None:
    old = Cgroup(f"{node.name}old")
    hooks = SocketHooks(node.root, old.path)
    pinned = node.root / "links"
    kept = node.root / "links_kept"
    pinned.rename(kept)  # those of the rig
    try:
        hooks.attach()
        old.close()
        with pytest.raises(NotFound, match="cgroup_root"):
            hooks.attach()
        with hooked(node.root, f"{node.name}new") as (cgroup, again):
            assert again.attached
            assert cgroup.run(node.name, lambda: call((VIP[4], 80)))["peer"] == (VIP[4], 80)
        assert not again.attached
    finally:
        pinned.rmdir()
        kept.rename(pinned)


def netns_path(name: str) -> str:
    return f"/run/netns/{name}"


async def test_udp_sockets_of_backends_that_are_gone_are_closed(rig: Rig) -> None:
    """Connected sockets of both families in two namespaces; those of others, and TCP, stay."""
    gone, stays = BACKENDS[4]
    mine = (VIP[4], 53), (f"::ffff:{VIP[4]}", 53), (VIP[6], 53)
    ready, go_on = multiprocessing.Pipe()

    def work() -> list[object]:
        rig.services.put(2, (VIP[4], 53), [(gone, 5353)], UDP)
        rig.services.put(4, (VIP[6], 53), [(BACKENDS[6][0], 5353)], UDP)
        doomed = [connected(*target) for target in mine]
        moved = connected(VIP[4], 53)
        moved.connect((stays, 5353))  # by no Service: what is remembered of it is history
        rig.services.put(2, (VIP[4], 53), [(stays, 5353)], UDP)
        kept = connected(VIP[4], 53)
        tcp = socket.create_connection((VIP[4], 80))
        direct = connected(gone, 5353)  # of no Service
        go_on.send("connected")
        go_on.recv()
        found: list[object] = []
        for each in doomed:
            each.settimeout(2)
            with pytest.raises(OSError) as caught:
                each.recv(10)
            found.append(caught.value.errno)
        for each in (kept, direct, moved):
            each.send(b"?")
            found.append(each.recv(100).decode().split()[0])
        return [*found, tcp.getpeername()[0]]

    live = frozenset(ip(a) + be16(5353).to_bytes(2, "little") for a in (stays, BACKENDS[6][1]))
    sweeper = SocketSweeper(
        rig.node.map("sockets"), lambda: live, lambda: [netns_path("clt-none"), netns_path(rig.node.name)]
    )
    child = asyncio.get_running_loop().run_in_executor(None, rig.run, work)
    await asyncio.get_running_loop().run_in_executor(None, ready.recv)
    assert await sweeper.sweep() == 3
    assert await sweeper.sweep() == 0
    ready.send("swept")
    assert await child == [errno.ECONNABORTED] * 3 + [stays, gone, stays, VIP[4]]


def connected(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(3)
    made.connect((address, port))
    return made
