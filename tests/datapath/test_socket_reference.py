"""Sockets below the hooks against the readable reference, on random Services; and Services as calc writes them."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from services.agent.abi.layout import be16
from services.agent.abi.lb import Scope, ServiceFlags, ServiceInfo, ServiceKey
from services.agent.abi.sock import SockEntry, SockKey
from services.agent.calc.services import NodeFacts
from services.agent.datapath.fake_sock import ReferenceSockets, Refused
from services.common.netns import netns_cookie
from services.model.addresses import from_bytes
from services.model.identity import Reserved
from services.model.objects import HostPort, Pod
from services.model.services import TrafficPolicy
from tests.conftest import Tally
from tests.datapath.node import Node, ip, sh
from tests.datapath.socketed import Cgroup, Servers, Services, call, hooked
from tests.unit.agent.calc.lb_world import A, World, endpoint, service, slice_of

pytestmark = pytest.mark.root

UDP = socket.IPPROTO_UDP
SO_COOKIE = 57
HERE = ["10.99.0.1", "10.99.0.2", "10.99.0.3", "fd00:99::1", "fd00:99::2"]
VIPS = ["10.96.0.1", "10.96.0.2", "fd00:96::1"]
NODE4 = "192.168.0.1"
NODES = ["172.31.0.2", "fd00:31::2"]
OUTSIDE = "172.31.0.3"
LOOPBACK = ["127.0.0.1", "127.0.0.9", "::1", "0.0.0.0", "::"]


@dataclass
class Rig:
    node: Node
    cgroup: Cgroup


@pytest.fixture(scope="module")
def rig(module_node: Node) -> Iterator[Rig]:
    sh("ip", "link", "set", "lo", "up", netns=module_node.name)
    for address in (*HERE, NODE4):
        length = 128 if ":" in address else 32
        sh("ip", "addr", "add", f"{address}/{length}", "dev", "lo", netns=module_node.name)
    with hooked(module_node.root, module_node.name) as (cgroup, _):
        yield Rig(module_node, cgroup)


def random_services(node: Node, chance: random.Random) -> None:
    services = Services(node.map)
    for number, vip in enumerate(VIPS):
        if chance.random() < 0.7:
            services.wildcard(vip)
        for port in (53, 54, 55):
            if chance.random() < 0.7:
                same = [each for each in HERE if (":" in each) == (":" in vip)]
                backends = [(each, chance.choice((7000, 7001))) for each in same if chance.random() < 0.6]
                flags = chance.choice((ServiceFlags.REFUSE, ServiceFlags.LOCAL))
                services.put(number * 10 + port, (vip, port), backends, UDP, 0 if backends else flags)
    for number, address in enumerate(("0.0.0.0", "::")):
        for port in (54, 55, 56):
            same = [each for each in HERE if (":" in each) == (":" in address)]
            flags = chance.choice((ServiceFlags.NODE_PORT, ServiceFlags.HOST_PORT))
            services.put(200 + number * 10 + port, (address, port), [(each, 7000) for each in same], UDP, flags)
    for address in NODES:
        node.ipcache(address, chance.choice((Reserved.HOST, Reserved.REMOTE_NODE, Reserved.KUBE_APISERVER)))
    node.ipcache(OUTSIDE, Reserved.WORLD_IPV4)


Done = tuple[int, tuple[str, int] | None, tuple[bytes, int] | None]
"""(error, the peer's name, the backend by the map)"""


def attempt(node: Node, target: tuple[str, int], family: int) -> Done:
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        number = made.connect_ex(target)
        cookie = int.from_bytes(made.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
        raw = node.map("sockets").lookup(SockKey(cookie=cookie, protocol=UDP).pack())
        entry = SockEntry.unpack(raw) if raw else None
        backend = (bytes(entry.backend), be16(entry.backend_port)) if entry else None
        peer = None if number else made.getpeername()[:2]
        return number, peer, backend


@pytest.mark.parametrize("seed", range(6))
def test_the_kernel_does_what_the_reference_says(rig: Rig, node: Node, seed: int, tally: Tally) -> None:
    chance = random.Random(seed)
    home = rig.cgroup.run(node.name, netns_cookie) + chance.choice((0, 1))
    node.settings(netns=home)
    random_services(node, chance)
    node.map("sockets")  # opened before the child is made
    targets = []
    for _ in range(120):
        address = chance.choice(VIPS + HERE + NODES + LOOPBACK + [OUTSIDE])
        mapped = "." in address and chance.random() < 0.4
        family = socket.AF_INET6 if mapped or ":" in address else socket.AF_INET
        targets.append(((f"::ffff:{address}" if mapped else address, chance.choice((53, 54, 55, 56))), family))
    results = rig.cgroup.run(node.name, lambda: [attempt(node, *each) for each in targets])
    maps = {name: dict(node.map(name).items()) for name in ("services", "backends", "backend_slots", "maglev")}
    for ((text, port), _), (number, peer, backend) in zip(targets, results, strict=True):
        to = ip(text.removeprefix("::ffff:")), port
        wanted = possible(maps, to, rig.cgroup.run(node.name, netns_cookie), home)
        if isinstance(wanted, int):
            assert (number, peer, backend) == (wanted, None, None)
            continue
        chosen = backend or to
        assert chosen in wanted, (text, port)
        where = from_bytes(chosen[0])
        own = where.is_loopback or where.is_unspecified
        assert (number == 0) == (own or str(where) in HERE), (text, number)
        if not number and not where.is_unspecified:
            assert peer == (text, port), "whatever it is connected to, it sees what it asked for"
    tally("connects compared with the reference", len(targets))


def possible(
    maps: dict[str, dict[bytes, bytes]], to: tuple[bytes, int], netns: int, home: int
) -> int | set[tuple[bytes, int]]:
    """All that the reference may do, over the random choice."""
    found = set()
    for choice in range(len(HERE)):
        try:
            pick = lambda count, choice=choice: choice % count  # noqa: E731
            reference = ReferenceSockets(maps, pick, home, [ip(address) for address in NODES])
            place = reference.connect(1, netns, to, UDP)
        except Refused as refused:
            return refused.number
        assert reference.seen(1, place, UDP) == to
        reference.close(1, UDP)
        assert reference.seen(1, place, UDP) == place
        assert reference.send(2, netns, to) == place
        assert reference.seen(2, place, UDP) == to
        found.add(place)
    return found


def test_every_kind_of_address_leads_a_client_inside_to_where_the_policies_say(rig: Rig, node: Node) -> None:
    """Addresses for the outside have Cluster semantics from inside, whatever the external policy."""
    near, far = HERE[0], HERE[1]
    facts = NodeFacts("node1", (A(NODE4),))
    slices = {
        name: slice_of(endpoint(near, "node1"), endpoint(far, "node2"), service=name) for name in ("web", "inner")
    }
    world = World(
        service(
            "web",
            "LoadBalancer",
            external_ips=("198.51.100.7",),
            ingress_ips=("203.0.113.7",),
            external_policy=TrafficPolicy.LOCAL,
        ),
        service("inner", cluster_ips=("10.96.0.9",), internal_policy=TrafficPolicy.LOCAL),
        service("away", cluster_ips=("10.96.0.8",), internal_policy=TrafficPolicy.LOCAL),
        slice_of(endpoint(far, "node2"), service="away"),
        service("nobody", cluster_ips=("10.96.0.7",)),
        *slices.values(),
        node=facts,
    )
    pod = Pod("ns", "pod", node="node1", addresses=(A(HERE[2]),), host_ports=(HostPort(8088, 8080, 6),))
    world.services.set_pod(("ns", "pod"), pod)
    world.services.settle()
    for name in ("backends", "services"):
        node.map(name).update_batch(world.services.tables[name].desired)  # type: ignore[index]
    servers = Servers(node.name)
    try:
        for address in HERE[:3]:
            servers.add(address, 8080)
        places = [
            ("10.96.0.1", 80), (NODE4, 30080), ("198.51.100.7", 80), ("203.0.113.7", 80),
            ("10.96.0.9", 80), (NODE4, 8088),
            ("10.96.0.8", 80), ("10.96.0.7", 80), ("203.0.113.7", 81), (NODE4, 9),
        ]  # fmt: skip

        def answers() -> list[set[object]]:
            found = [[call(place) for _ in range(20)] for place in places]
            return [{r["answer"].split()[0] if "answer" in r else r["errno"] for r in each} for each in found]

        both, refused = {near, far}, {errno.ECONNREFUSED}
        wanted = [both] * 4 + [{near}, {HERE[2]}, {errno.EHOSTUNREACH}, refused, refused, refused]
        assert dict(zip(places, rig.cgroup.run(node.name, answers), strict=True)) == dict(
            zip(places, wanted, strict=True)
        )
    finally:
        servers.close()
    external = ServiceKey(address=ip("203.0.113.7"), port=be16(80), protocol=6, scope=Scope.EXTERNAL).pack()
    assert ServiceInfo.unpack(world.services.tables["services"].desired[external]).backend_count == 1
