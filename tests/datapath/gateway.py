"""A node with an uplink for packet tests of translation: addresses, devices, and what the table holds."""

from __future__ import annotations

from typing import Any

from scapy.all import Ether, raw

from services.agent.abi.ipcache import IpcacheKey
from services.agent.abi.layout import be16
from services.agent.abi.lb import Backend, BackendFlags, BackendKey, Scope, ServiceFlags, ServiceInfo, ServiceKey
from services.agent.abi.nat import NatEntry, NatFlags, NatKey, NatWay, NetdevInfo
from services.model.addresses import prefix_to_key
from tests.datapath.node import Node, ip, ipaddress, sh, u32
from tests.datapath.packets import network

NODE4, NODE6 = "192.168.77.1", "fd00:77::1"
WORLD4, WORLD6 = "203.0.113.9", "2001:db8::9"
PEER4, PEER6 = "192.168.77.2", "fd00:77::2"
"""Another node."""
FAR = {False: "10.244.2.5", True: "fd00:10:244:2::5"}
"""A pod there; by whether it is IPv6."""
PORTS = (32768, 65535)


def uplink(node: Node) -> int:
    return node.ifindexes[3]


def prepare(node: Node, ports: tuple[int, int] = PORTS, **settings: Any) -> None:
    """The node has addresses on its uplink, and translates."""
    for name in ("nat_table", "no_masquerade", "netdevs"):
        node.map(name).delete_batch([key for key, _ in node.map(name).items()])
    for number in (0, uplink(node)):
        node.map("netdevs").update(u32(number), NetdevInfo(ipv4=ip(NODE4), ipv6=ip(NODE6)).pack())
    node.settings(nat_ports=ports, **settings)
    for address in (NODE4, NODE6):
        node.ipcache(address, 1)


def route(node: Node) -> None:
    """The node's stack knows the way: its own network on the uplink, a gateway for the rest."""
    for command in (
        "ip link set host3 up",
        f"ip addr replace {NODE4}/24 dev host3",
        f"ip addr replace {NODE6}/64 dev host3 nodad",
        "ip route replace default via 192.168.77.254 dev host3",
        "ip -6 route replace default via fd00:77::fe dev host3",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
    ):
        sh(*command.split(), netns=node.name)


def expose(
    node: Node,
    service_id: int,
    address: str,
    port: int,
    backends: list[tuple[str, int]],
    protocol: int = 6,
    flags: int = 0,
    local: tuple[str, ...] = (),
) -> None:
    """A frontend for the outside, as calc writes it. `local`: addresses of backends on this node."""
    for slot, (backend, target) in enumerate(backends):
        value = Backend(
            address=ip(backend),
            port=be16(target),
            protocol=protocol,
            flags=BackendFlags.LOCAL if backend in local else 0,
        )
        node.map("backends").update(BackendKey(service_id=service_id, slot=slot).pack(), value.pack())
    key = ServiceKey(address=ip(address), port=be16(port), protocol=protocol, scope=Scope.EXTERNAL)
    info = ServiceInfo(service_id=service_id, backend_count=len(backends), flags=flags)
    node.map("services").update(key.pack(), info.pack())


def wildcard(node: Node, address: str) -> None:
    """The address is a Service's own: other ports are nobody's."""
    key = ServiceKey(address=ip(address), scope=Scope.EXTERNAL)
    node.map("services").update(key.pack(), ServiceInfo(flags=ServiceFlags.WILDCARD).pack())


def exclude(node: Node, prefix: str) -> None:
    length, address = prefix_to_key(ipaddress.ip_network(prefix))
    node.map("no_masquerade").update(IpcacheKey(prefixlen=length, address=address).pack(), u32(1))


def frame(source: str, destination: str, l4: Any, **fields: Any) -> bytes:
    return bytes(
        raw(Ether(src="02:00:00:00:77:01", dst="02:00:00:00:77:02") / network(source, destination, **fields) / l4)
    )


def leaves(node: Node, source: str, destination: str, l4: Any, **fields: Any) -> Any:
    """A packet on its way out of the node."""
    return node.run("to_netdev", frame(source, destination, l4, **fields), uplink(node))


def arrives(node: Node, source: str, destination: str, l4: Any, **fields: Any) -> Any:
    """A packet from outside."""
    return node.run("from_netdev", frame(source, destination, l4, **fields), uplink(node))


def table(node: Node) -> dict[NatKey, NatEntry]:
    return {NatKey.unpack(key): NatEntry.unpack(value) for key, value in node.map("nat_table").items()}


def reserve(node: Node, peer: str, peer_port: int, port: int, protocol: int = 6, own: str = NODE4) -> None:
    """Somebody else has this port of the node towards that peer."""
    key = NatKey(
        saddr=ip(peer), daddr=ip(own), sport=be16(peer_port), dport=be16(port), protocol=protocol, way=NatWay.IN
    )
    entry = NatEntry(saddr=ip(peer), daddr=ip("10.9.9.9"), flags=NatFlags.ANSWER, expires_ns=2**63)
    node.map("nat_table").update(key.pack(), entry.pack())
