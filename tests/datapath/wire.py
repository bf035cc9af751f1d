"""Nodes joined by a link, with pods in network namespaces of their own: for packets that really travel.

pod ns --veth-- node ns --(veth "uplink")-- node ns --veth-- pod ns      VXLAN between the nodes
"""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path

from services.agent.datapath import attach
from tests.datapath.node import GATEWAY_MAC, Node, Pod, inside, ip, sh, u32


class WiredNode(Node):
    """A node whose pods are real. `number` is in all its addresses."""

    def __init__(self, cache_dir: Path, number: int, mtu: int = 1500, **sizes: int) -> None:
        self.number, self.mtu = number, mtu
        self.namespaces: list[str] = []
        super().__init__(cache_dir, links=0, **sizes)
        self.address = f"192.168.77.{number}"
        sh("ip", "link", "set", "lo", "up", netns=self.name)
        for setting in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            path = "/proc/sys/net/" + setting.replace(".", "/")
            sh("sh", "-c", f"echo 1 > {path}", netns=self.name)

    def close(self) -> None:
        for namespace in self.namespaces:
            sh("ip", "netns", "del", namespace)
        super().close()

    def in_netns(self, operation: object) -> object:
        """Run a coroutine with this thread (and the sockets it opens) in the node's namespace."""
        with inside(self.name):
            return asyncio.run(operation)  # type: ignore[arg-type]

    def add_pod(self, id: int, identity: int, policy_id: int | None = None) -> Pod:
        """A pod: namespace, veth, addresses, routes, hooks, maps."""
        namespace, host = f"{self.name}p{id}", f"lxc{id}"
        sh("ip", "netns", "add", namespace)
        self.namespaces.append(namespace)
        size = str(self.mtu - attach.OVERHEAD4)
        sh(
            "ip",
            "link",
            "add",
            host,
            "mtu",
            size,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            namespace,
            netns=self.name,
        )
        pod = Pod(
            id=id,
            ifindex=self._ifindex(host),
            ipv4=f"10.244.{self.number}.{id}",
            ipv6=f"fd00:10:244:{self.number}::{id:x}",
            mac=f"02:00:00:00:{self.number:02x}:{id:02x}",
            identity=identity,
            policy_id=policy_id or id,
        )
        self._configure_pod(namespace, host, pod)
        self.put_pod(pod)
        self.in_netns(attach.attach_endpoint(pod.ifindex, self.root / "progs"))
        return pod

    def _configure_pod(self, namespace: str, host: str, pod: Pod) -> None:
        batch = f"""
            link set eth0 mtu {self.mtu - attach.OVERHEAD4} address {pod.mac}
            link set lo up
            link set eth0 up
            addr add {pod.ipv4}/32 dev eth0
            addr add {pod.ipv6}/128 dev eth0 nodad
            neigh replace 169.254.1.1 lladdr {GATEWAY_MAC} dev eth0 nud permanent
            neigh replace fe80::1 lladdr {GATEWAY_MAC} dev eth0 nud permanent
            route add 169.254.1.1/32 dev eth0
            route add default via 169.254.1.1
            route add default via fe80::1 dev eth0
        """
        sh("sh", "-c", f"echo '{batch}' | sed '/^ *$/d' | ip -batch -", netns=namespace)
        for command in (
            f"link set {host} address {GATEWAY_MAC} up",
            f"route add {pod.ipv4}/32 dev {host}",
            f"route add {pod.ipv6}/128 dev {host}",
            f"neigh replace {pod.ipv4} lladdr {pod.mac} dev {host} nud permanent",
            f"neigh replace {pod.ipv6} lladdr {pod.mac} dev {host} nud permanent",
        ):
            sh("ip", *command.split(), netns=self.name)

    def pod_ns(self, pod: Pod) -> str:
        return f"{self.name}p{pod.id}"

    def join(self, other: WiredNode) -> None:
        """Link two nodes and tell each what the other has."""
        sh(
            "ip",
            "link",
            "add",
            "uplink",
            "mtu",
            str(self.mtu),
            "type",
            "veth",
            "peer",
            "name",
            "uplink",
            "netns",
            other.name,
            netns=self.name,
        )
        for node in (self, other):
            sh("ip", "addr", "add", f"{node.address}/24", "dev", "uplink", netns=node.name)
            sh("ip", "link", "set", "uplink", "up", netns=node.name)
        for node, peer in ((self, other), (other, self)):
            overlay = node.in_netns(attach.ensure_vxlan(mtu=node.mtu - attach.OVERHEAD4))
            assert isinstance(overlay, int)
            node.in_netns(attach.attach_overlay(overlay, node.root / "progs"))
            node.in_netns(
                attach.ensure_routes(
                    overlay,
                    {
                        ipaddress.ip_network(f"10.244.{peer.number}.0/24"): ipaddress.ip_address(node.address),
                        ipaddress.ip_network(f"fd00:10:244:{peer.number}::/64"): None,
                    },
                )
            )
            node.settings(overlay_ifindex=overlay)
            node.ipcache(node.address, 1)
            node.ipcache(peer.address, 6)
            for pod in peer.pods.values():
                for address in (pod.ipv4, pod.ipv6):
                    node.ipcache(address, pod.identity, peer.address)


__all__ = ["WiredNode", "ip", "u32"]
