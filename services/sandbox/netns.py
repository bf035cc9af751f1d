"""The network of a sandbox: one namespace per node, joined by a switch namespace that also plays the outside world.

    pod ── veth ── [ node1 ] ── eth0 ══ switch (bridge, "the world" 203.0.113.10) ══ eth0 ── [ node2 ] ── veth ── pod

Nothing is made in the machine's own namespace, so two sandboxes use the same addresses without meeting.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import os
import socket
from dataclasses import dataclass

from services.common.errors import Internal, Invalid
from services.sandbox.state import NETNS_ROOT

WORLD4, WORLD6 = "203.0.113.10", "2001:db8::10"
"""Addresses outside of the cluster (documentation ranges), served by the switch namespace."""
BALANCER4, BALANCER6 = "10.111.0.0/24", "fd00:10:111::/112"
"""Addresses of load balancers; the outside has routes to them through every node, as a router that was told them."""
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class NodeNet:
    """One node's place in the network."""

    name: str
    netns: str
    address4: str
    address6: str
    pod_cidr4: str
    pod_cidr6: str


@dataclass(frozen=True, slots=True)
class Topology:
    """The whole network of a sandbox."""

    switch: str
    nodes: tuple[NodeNet, ...]


def plan(prefix: str, count: int) -> Topology:
    """The network for `count` nodes; namespace names start with `prefix`."""
    if not 1 <= count <= 100:
        raise Invalid(f"nodes: {count} is out of range; choose 1 to 100")
    nodes = tuple(
        NodeNet(
            name=f"node{number}",
            netns=f"{prefix}node{number}",
            address4=f"172.30.0.{number}",
            address6=f"fd00:172:30::{number:x}",
            pod_cidr4=f"10.244.{number}.0/24",
            pod_cidr6=f"fd00:10:244:{number:x}::/64",
        )
        for number in range(1, count + 1)
    )
    return Topology(f"{prefix}switch", nodes)


_SYSCTLS = """\
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
"""


def switch_script(topology: Topology) -> str:
    """Shell lines to run inside the switch namespace: bridge, a port per node, the world, routes to the pods."""
    lines = [
        _SYSCTLS,
        "ip link set lo up",
        "ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        "ip addr add 172.30.0.254/24 dev br0",
        "ip addr add fd00:172:30::fe/64 dev br0 nodad",
        f"ip addr add {WORLD4}/32 dev lo",
        f"ip addr add {WORLD6}/128 dev lo nodad",
        "ip link set br0 up",
    ]
    for node in topology.nodes:
        lines += [
            f"ip link add {node.name} type veth peer name eth0 netns {node.netns}",
            f"ip link set {node.name} master br0 up",
            f"ip route add {node.pod_cidr4} via {node.address4}",
            f"ip -6 route add {node.pod_cidr6} via {node.address6} dev br0",
        ]
    hops4 = " ".join(f"nexthop via {node.address4}" for node in topology.nodes)
    hops6 = " ".join(f"nexthop via {node.address6} dev br0" for node in topology.nodes)
    lines += [f"ip route add {BALANCER4} {hops4}", f"ip -6 route add {BALANCER6} {hops6}"]
    return "\n".join(lines) + "\n"


def node_script(node: NodeNet) -> str:
    """Shell lines to run inside a node's namespace, after the switch's."""
    return f"""{_SYSCTLS}
ip link set lo up
ip addr add {node.address4}/24 dev eth0
ip addr add {node.address6}/64 dev eth0 nodad
ip link set eth0 up
ip route add default via 172.30.0.254
ip -6 route add default via fd00:172:30::fe dev eth0
"""


async def build(topology: Topology) -> None:
    """Make the namespaces and the links between them; raises `Internal` with the command's own words."""
    await run("sh", "-ec", "\n".join(f"ip netns add {name}" for name in all_names(topology)))
    await in_netns(topology.switch, switch_script(topology))
    await asyncio.gather(*(in_netns(node.netns, node_script(node)) for node in topology.nodes))


def all_names(topology: Topology) -> list[str]:
    """Namespace names of the switch and the nodes."""
    return [topology.switch, *(node.netns for node in topology.nodes)]


async def destroy(prefix: str) -> None:
    """Remove every namespace whose name starts with `prefix`, and with them all links in them."""
    for name in existing(prefix):
        await run("ip", "netns", "del", name)


def existing(prefix: str) -> list[str]:
    """Namespaces on this machine whose names start with `prefix`."""
    if not NETNS_ROOT.is_dir():
        return []
    return sorted(name for name in os.listdir(NETNS_ROOT) if name.startswith(prefix))


async def in_netns(netns: str, script: str) -> str:
    """Run shell lines in the namespace; the file system stays as it is (`ip netns exec` would hide bpffs)."""
    return await run("nsenter", f"--net={NETNS_ROOT / netns}", "sh", "-ec", script)


async def run(*arguments: str) -> str:
    """Run a command to its end and return its output; `Internal` names the command and says what it said."""
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise Internal(f"{' '.join(arguments)[:300]}: {errors.decode(errors='replace').strip()}")
    return output.decode(errors="replace")


class SocketMaker:
    """Makes sockets inside network namespaces: a socket belongs to the namespace of the thread that made it.

    Threads of its own, because `setns` moves the calling thread and the event loop must stay where it is.
    """

    def __init__(self) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="netns")
        self._libc = ctypes.CDLL(None, use_errno=True)

    async def make(self, netns: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A non-blocking socket of the namespace; raises `Internal` where there is no such namespace."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._make, netns, family, kind)

    def _make(self, netns: str, family: int, kind: int) -> socket.socket:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(NETNS_ROOT / netns, os.O_RDONLY)
        except OSError as error:
            os.close(home)
            raise Internal(f"network namespace {netns}: {error.strerror}") from error
        try:
            self._enter(there)
            made = socket.socket(family, kind)
            made.setblocking(False)
            return made
        finally:
            self._enter(home)
            os.close(there)
            os.close(home)

    def _enter(self, descriptor: int) -> None:
        if self._libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise Internal(f"setns: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=False)
