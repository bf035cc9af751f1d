"""Two nodes and the world around them, for packets that really travel.

    pod ns --veth-- node ns --uplink== world ns (a bridge; the client and the server out there) ==uplink-- node ns ...

Between the nodes either the overlay or routes to each other's pods.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.agent.abi.config import ConfigFlags
from services.agent.abi.nat import NetdevInfo
from services.agent.datapath import attach
from tests.datapath.gateway import expose
from tests.datapath.node import Pod, inside, ip, sh, u32
from tests.datapath.walks import EGRESS, INGRESS
from tests.datapath.wire import WiredNode

CLIENT4, CLIENT6 = "203.0.113.9", "2001:db8::9"
PORT, NODE_PORT = 8080, 30080
SECONDS = 3.0
SO_RCVBUFFORCE = 33


class OutsideNode(WiredNode):
    """A node at the bridge of the world."""

    fields: Mapping[str, Any] = {}

    def configured(self, **fields: Any) -> None:
        """Its settings, and some of them otherwise."""
        self.settings(**{**self.fields, **fields})

    @property
    def address6(self) -> str:
        return f"fd00:77::{self.number:x}"

    def at(self, v6: bool) -> str:
        return self.address6 if v6 else self.address

    def plug(self, world: str) -> None:
        """An uplink to the bridge, addresses, the way out."""
        port = f"node{self.number}"
        command = f"ip link add uplink type veth peer name {port} netns {world}"
        sh(*command.split(), netns=self.name)
        for line in (
            f"ip addr add {self.address}/24 dev uplink",
            f"ip addr add {self.address6}/64 dev uplink nodad",
            "ip link set uplink up",
            "ip route add default via 192.168.77.254",
            "ip -6 route add default via fd00:77::fe dev uplink",
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
        ):
            sh(*line.split(), netns=self.name)
        sh("ip", "link", "set", port, "master", "br0", "up", netns=world)
        uplink = self._ifindex("uplink")
        info = NetdevInfo(ipv4=ip(self.address), ipv6=ip(self.address6)).pack()
        for key in (0, uplink):
            self.map("netdevs").update(u32(key), info)
        self.in_netns(attach.attach_netdev(uplink, self.root / "progs"))


@dataclass
class World:
    """Everything. `overlay`: how pods of the two nodes reach one another."""

    name: str
    one: OutsideNode
    two: OutsideNode
    near: Pod
    far: Pod
    overlay: bool

    def nodes(self) -> tuple[OutsideNode, OutsideNode]:
        return self.one, self.two

    def home(self, pod: Pod) -> OutsideNode:
        return self.one if pod is self.near else self.two


def client(v6: bool) -> str:
    return CLIENT6 if v6 else CLIENT4


def pod_at(pod: Pod, v6: bool) -> str:
    return pod.ipv6 if v6 else pod.ipv4


def build(cache: Path, overlay: bool) -> World:
    """Make it all; closes what it made when something fails."""
    nodes: list[OutsideNode] = []
    world = ""
    try:
        nodes.append(OutsideNode(cache, 1))
        nodes.append(OutsideNode(cache, 2))
        world = f"{nodes[0].name}w"
        sh("ip", "netns", "add", world)
        for line in (
            "ip link set lo up",
            "ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            "ip addr add 192.168.77.254/24 dev br0",
            "ip addr add fd00:77::fe/64 dev br0 nodad",
            "ip link set br0 up",
            f"ip addr add {CLIENT4}/32 dev lo",
            f"ip addr add {CLIENT6}/128 dev lo nodad",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        ):
            sh(*line.split(), netns=world)
        one, two = nodes
        near, far = one.add_pod(1, 1001), two.add_pod(1, 1002)
        made = World(world, one, two, near, far, overlay)
        for node in nodes:
            node.plug(world)
        for node, peer in ((one, two), (two, one)):
            _acquaint(made, node, peer)
    except BaseException:
        close(world, nodes)
        raise
    return made


def _ranges(node: OutsideNode) -> tuple[str, str]:
    return f"10.244.{node.number}.0/24", f"fd00:10:244:{node.number}::/64"


def _acquaint(world: World, node: OutsideNode, peer: OutsideNode) -> None:
    ranges = _ranges(peer)
    flags = ConfigFlags.NORTH_SOUTH | ConfigFlags.MASQUERADE
    if world.overlay:
        index = node.in_netns(attach.ensure_vxlan(mtu=1450))
        assert isinstance(index, int)
        node.in_netns(attach.attach_overlay(index, node.root / "progs"))
        own = ipaddress.ip_address(node.address)
        routes = {ipaddress.ip_network(ranges[0]): own, ipaddress.ip_network(ranges[1]): None}
        node.in_netns(attach.ensure_routes(index, routes))
        node.map("netdevs").update(u32(index), node.map("netdevs").lookup(u32(0)) or b"")
        node.fields = {"flags": flags, "overlay_ifindex": index, "tunnel_address": own, "path_mtu": 1450}
    else:
        sh(*f"ip route add {ranges[0]} via {peer.address}".split(), netns=node.name)
        sh(*f"ip -6 route add {ranges[1]} via {peer.address6}".split(), netns=node.name)
        node.fields = {"flags": flags | ConfigFlags.NATIVE_ROUTING}
    node.configured()
    for address in (node.address, node.address6):
        node.ipcache(address, 1)
    for address in (peer.address, peer.address6):
        node.ipcache(address, 6, peer.address, routed=not world.overlay)
    for pod in peer.pods.values():
        for address in (pod.ipv4, pod.ipv6):
            # Routes tell nothing of nodes' families: there the one of the pod's address.
            at = peer.address if world.overlay else peer.at(":" in address)
            node.ipcache(address, pod.identity, at, routed=not world.overlay)
    for pod in node.pods.values():
        node.open(pod, INGRESS, EGRESS)


def forget_paths(netns: str) -> None:
    """What a network namespace has learnt of the ways to others."""
    sh("sh", "-c", "ip route flush cache; ip -6 route flush cache", netns=netns)


@contextmanager
def narrow_between(world: World, over6: bool = False) -> Iterator[int]:
    """Less room between the nodes than clients and pods have (1500): by the overlay, over IPv6 if so wished, or by a
    route whose link is narrow. Yields the size of a pod's packet that fits."""
    sizes = [("uplink", world.two.name, 1400), (f"node{world.two.number}", world.name, 1400)]
    fits, changed = (1430 if over6 else 1450, []) if world.overlay else (1400, sizes)
    changed = [("eth0", world.two.pod_ns(world.far), 1500), (f"lxc{world.far.id}", world.two.name, 1500), *changed]
    for mtu in (1499, 1500):  # once it was set it stays, whatever the bridge's ports have
        sh("ip", "link", "set", "br0", "mtu", str(mtu), netns=world.name)
    try:
        forget_paths(world.name)
        for device, netns, mtu in changed:
            sh("ip", "link", "set", device, "mtu", str(mtu), netns=netns)
        _reroute(world, over6, "" if world.overlay else f" mtu lock {fits}")
        yield fits
    finally:
        for device, netns, mtu in changed:
            sh("ip", "link", "set", device, "mtu", str(1500 if mtu == 1400 else 1450), netns=netns)
        _reroute(world, False, "")
        for name in (world.name, world.two.pod_ns(world.far)):
            forget_paths(name)


def _reroute(world: World, over6: bool, limit: str) -> None:
    """How the nodes' pods reach each other from now on."""
    for node, peer in (world.nodes(), world.nodes()[::-1]):
        if not world.overlay:
            sh(*f"ip route replace {_ranges(peer)[0]} via {peer.address}{limit}".split(), netns=node.name)
            sh(*f"ip -6 route replace {_ranges(peer)[1]} via {peer.address6}{limit}".split(), netns=node.name)
            continue
        end = peer.at(over6)
        for pod in peer.pods.values():
            for address in (pod.ipv4, pod.ipv6):
                node.ipcache(address, pod.identity, end)
        for address in (peer.address, peer.address6):
            node.ipcache(address, 6, end)
        node.configured(tunnel_address=ipaddress.ip_address(node.at(over6)), path_mtu=1430 if over6 else 1450)


def close(world: str, nodes: list[OutsideNode]) -> None:
    for node in nodes:
        node.close()
    if world:
        sh("ip", "netns", "del", world)


def publish(
    world: World, address: str | None, backend: Pod, v6: bool, protocol: int, flags: int = 0, port: int = NODE_PORT
) -> None:
    """A frontend on both nodes: at an address of its own, or (None) a node port."""
    for node in world.nodes():
        target = pod_at(backend, v6)
        local = (target,) if world.home(backend) is node else ()
        expose(node, 7, address or node.at(v6), port, [(target, PORT)], protocol, flags, local)


def withdraw(world: World) -> None:
    for node in world.nodes():
        for name in ("services", "backends", "nat_table", "ct"):
            node.map(name).delete_batch([key for key, _ in node.map(name).items()])


@contextmanager
def heard(world: World, node: OutsideNode) -> Iterator[list[bytes]]:
    """The frames that cross a node's link meanwhile, both ways; there at the end."""
    frames: list[bytes] = []
    with inside(world.name):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sniffer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        sniffer.bind((f"node{node.number}", 3))
    with sniffer:
        sniffer.setblocking(False)
        yield frames
        with suppress(BlockingIOError):
            while True:
                frames.append(sniffer.recv(65536))


def in_netns(name: str, v6: bool, kind: int) -> socket.socket:
    with inside(name):
        made = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(SECONDS)
    return made


@contextmanager
def serving(netns: str, address: str, protocol: int, port: int = PORT) -> Iterator[list[str]]:
    """An echo server; yields the addresses of the clients that it sees. What it sends is preceded by nothing."""
    v6 = ":" in address
    seen: list[str] = []
    stop = threading.Event()
    with in_netns(netns, v6, socket.SOCK_STREAM if protocol == 6 else socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        server.settimeout(0.1)
        work = _tcp_echo if protocol == 6 else _udp_echo
        thread = threading.Thread(target=work, args=(server, seen, stop))
        if protocol == 6:
            server.listen()
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()


def _udp_echo(server: socket.socket, seen: list[str], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            data, sender = server.recvfrom(65536)
        except TimeoutError:
            continue
        seen.append(sender[0])
        server.sendto(data, sender)


def _tcp_echo(server: socket.socket, seen: list[str], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            connection, sender = server.accept()
        except TimeoutError:
            continue
        seen.append(sender[0])
        with connection:
            connection.settimeout(SECONDS)
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                pass


def ask(netns: str, source: str, target: str, port: int, protocol: int, payload: bytes) -> bytes:
    """What comes back of the payload. Raises OSError (TimeoutError, ConnectionRefusedError)."""
    v6 = ":" in target
    with in_netns(netns, v6, socket.SOCK_STREAM if protocol == 6 else socket.SOCK_DGRAM) as sock:
        if source:
            sock.bind((source, 0))
        sock.connect((target, port))
        if protocol == 17:
            sock.send(payload)
            return sock.recv(65536)
        got = bytearray()
        sender = threading.Thread(target=_send, args=(sock, payload))
        sender.start()
        while len(got) < len(payload) and (data := sock.recv(1 << 16)):
            got += data
        sender.join()
        return bytes(got)


def _send(sock: socket.socket, payload: bytes) -> None:
    with suppress(OSError):
        sock.sendall(payload)
