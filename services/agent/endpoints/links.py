"""veth pairs between the node and its pods, by netlink. The one module that touches pod namespaces.

    pod:  eth0  A/32, B/128   default via 169.254.1.1 / fe80::1, permanent neighbour = the host side's MAC
    node: cil…  A/32, B/128 -> cil…, permanent neighbour = the pod side's MAC

Nobody asks for link addresses: ARP and neighbour discovery stay out of the datapath.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import ipaddress
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.common import rtnetlink
from services.common.errors import Conflict, Exhausted, Internal, Invalid, NotFound
from services.common.netns import inside, opened
from services.common.rtnetlink import Link, Netlink, NetlinkRefused
from services.model.addresses import IPAddress
from services.model.bandwidth import Limits
from services.model.objects import LocalEndpoint

PREFIX = "cil"
_SHAPER = 0xC1110000
"""Handle of our queues."""
_MIN_BURST = 1 << 17
"""Two packets of the largest size: smaller buckets cut them up."""
_MAX_RATE = (1 << 32) - 1
"""Bytes per second that the kernel's field holds: 34 Gbit/s, above which no veth gets on its own."""
GATEWAY4 = ipaddress.IPv4Address("169.254.1.1")
GATEWAY6 = ipaddress.IPv6Address("fe80::1")
_NODAD, _ONLINK = 0x02, 0x4
_SCOPE_LINK = 253


@dataclass(frozen=True, slots=True)
class Attachment:
    """A pod's place: the path of its network namespace and the name of the interface in it."""

    container_id: str
    netns: str
    ifname: str

    @property
    def key(self) -> tuple[str, str]:
        """What the runtime knows it by: container, interface in it."""
        return self.container_id, self.ifname

    @property
    def host_ifname(self) -> str:
        """The host side's name: the same for the same attachment, so that a retry finds what it made before."""
        return PREFIX + hashlib.sha256(f"{self.container_id}/{self.ifname}".encode()).hexdigest()[:11]


@dataclass(frozen=True, slots=True)
class VethPair:
    """What was made: index and name of the host side, both hardware addresses."""

    ifindex: int
    ifname: str
    mac: bytes
    node_mac: bytes


class Links:
    """Netlink on the namespace in which the agent was started. Use as a context manager.

    `node` marks the interfaces made here, so that a sweep touches no others.
    """

    def __init__(self, node: str, mtu: int) -> None:
        self._alias, self.mtu = f"ciliate:{node}", mtu
        self._netlink: Any = None

    async def __aenter__(self) -> Self:
        self._home = os.stat("/proc/thread-self/ns/net").st_ino
        self._raw, self._slow, self._deleting = Netlink(), Netlink(), threading.Lock()
        self._netlink = AsyncIPRoute()
        await self._netlink.setup_endpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._netlink.close()
        self._raw.close()
        self._slow.close()

    async def create(self, attachment: Attachment, addresses: tuple[IPAddress, ...]) -> VethPair:
        """Make the pair, and the pod's side of it complete; ours stays down. An unfinished one of an earlier try is
        replaced. Raises `Invalid` (no such namespace), `Conflict` (the interface name is taken in the pod), `Internal`.
        """
        name, mac, node_mac = attachment.host_ifname, _random_mac(), _random_mac()
        with opened(attachment.netns) as netns:
            if os.fstat(netns).st_ino == self._home:
                raise Invalid(f"netns: {attachment.netns} is the node's own network, not a pod's")
            with inside(netns):
                # A socket belongs to the namespace it was made in; nothing else of the process moves.
                pod = Netlink()
            with pod:
                try:
                    made = self._make(attachment, netns, mac, node_mac)
                    pod.do(_pod_side(made.peer, addresses, node_mac))
                except NetlinkRefused as error:
                    await self.delete(name)
                    raise _error(error, f"interface {attachment.ifname} in {attachment.netns}") from error
        return VethPair(made.index, name, mac, node_mac)

    def _make(self, attachment: Attachment, netns: int, mac: bytes, node_mac: bytes) -> Link:
        name = attachment.host_ifname
        making = rtnetlink.add_veth(name, node_mac, attachment.ifname, mac, netns, self.mtu)
        try:
            answer = self._raw.do([making, rtnetlink.get_link(name)])[1]
        except NetlinkRefused as error:
            if error.code != errno.EEXIST:
                raise
            answer = self._raw.do([rtnetlink.delete_link(name), making, rtnetlink.get_link(name)])[2]
        return rtnetlink.read_link(answer)

    async def start(self, veth: VethPair, addresses: tuple[IPAddress, ...]) -> None:
        """Let packets in and out: the programs are there. Raises `Internal`."""
        messages = [rtnetlink.set_link(veth.ifindex, alias=self._alias)]
        for address in addresses:
            messages.append(rtnetlink.set_neighbour(veth.ifindex, address.packed, veth.mac))
            messages.append(rtnetlink.set_route(veth.ifindex, address.version, address.packed, scope=_SCOPE_LINK))
        try:
            self._raw.do(messages)
        except NetlinkRefused as error:
            raise _error(error, f"interface {veth.ifname}") from error

    async def delete(self, ifname: str) -> None:
        """Remove a host side, and with it the pair; absent = success. The kernel waits for its other processors, 20 ms
        and more, so that nobody else here is to wait with it."""
        try:
            await asyncio.to_thread(self._delete, ifname)
        except NetlinkRefused as error:
            raise _error(error, f"interface {ifname}") from error

    def _delete(self, ifname: str) -> None:
        with self._deleting:
            self._slow.do([rtnetlink.delete_link(ifname)])

    async def index(self, ifname: str) -> int:
        """The interface's index, 0 where there is none."""
        try:
            found = self._raw.link(ifname)
        except NetlinkRefused as error:
            raise _error(error, f"interface {ifname}") from error
        return found.index if found else 0

    async def ours(self) -> dict[str, int]:
        """Name -> index of every interface that an agent of this node made."""
        links = self._raw.links()
        return {link.name: link.index for link in links if link.alias == self._alias and link.name.startswith(PREFIX)}

    async def check(self, endpoint: LocalEndpoint) -> None:
        """Whether an endpoint is in place on both sides; raises `NotFound` naming what is missing."""
        if await self.index(endpoint.ifname) != endpoint.ifindex:
            raise NotFound(f"interface {endpoint.ifname} of {endpoint.namespace}/{endpoint.pod} is gone from the node")
        async with _pod_netlink(endpoint.netns) as (pod, _fd):
            try:
                found = await pod.link("get", ifname=endpoint.peer_ifname)
            except NetlinkError as error:
                raise NotFound(f"interface {endpoint.peer_ifname} is gone from {endpoint.netns}") from error
            present = {a.get("address") async for a in await pod.get_addr(index=found[0]["index"])}
        for address in endpoint.addresses:
            if str(address) not in present:
                raise NotFound(f"address {address} is gone from {endpoint.peer_ifname} in {endpoint.netns}")

    async def resize(self, endpoint: LocalEndpoint, mtu: int) -> None:
        """Give both sides of an endpoint's interface this MTU; raises `Invalid`, `Internal`.

        The pod's side never is the larger one: what it may send, the other must take.
        """
        try:
            async with _pod_netlink(endpoint.netns) as (pod, _fd):
                inside = (await pod.link("get", ifname=endpoint.peer_ifname))[0]
                before = int(inside.get_attr("IFLA_MTU"))
                if mtu > before:
                    await self._netlink.link("set", index=endpoint.ifindex, mtu=mtu)
                if mtu != before:
                    await pod.link("set", index=inside["index"], mtu=mtu)
                if mtu < before:
                    await self._netlink.link("set", index=endpoint.ifindex, mtu=mtu)
        except NetlinkError as error:
            raise _error(error, f"interface {endpoint.ifname}: MTU {mtu}") from error

    async def shape(self, endpoint: LocalEndpoint, limits: Limits) -> None:
        """Token buckets on both sides: the pod's for what it sends, the node's for what it receives."""
        try:
            if limits.egress:
                async with _pod_netlink(endpoint.netns) as (pod, _fd):
                    index = (await pod.link("get", ifname=endpoint.peer_ifname))[0]["index"]
                    await _shape(pod, index, limits.egress)
            else:
                _unshape_pod(endpoint)
            if limits.ingress:
                await _shape(self._netlink, endpoint.ifindex, limits.ingress)
            else:
                self._raw.do([rtnetlink.delete_queue(endpoint.ifindex, _SHAPER)])
        except (NetlinkError, NetlinkRefused) as error:
            raise _error(error, f"interface {endpoint.ifname}: bandwidth") from error


def _pod_side(index: int, addresses: tuple[IPAddress, ...], node_mac: bytes) -> list[rtnetlink.Message]:
    messages = [rtnetlink.set_link(1), rtnetlink.set_link(index)]
    for address in addresses:
        gateway = (GATEWAY4 if address.version == 4 else GATEWAY6).packed
        # Nobody else can have the address, so IPv6 need not ask before it is used.
        messages.append(rtnetlink.add_address(index, address.packed, flags=_NODAD if address.version == 6 else 0))
        messages.append(rtnetlink.set_neighbour(index, gateway, node_mac))
        messages.append(rtnetlink.set_route(index, address.version, gateway=gateway, flags=_ONLINK))
    return messages


async def _shape(netlink: Any, index: int, rate: int) -> None:
    """A token bucket of `rate` bytes per second as the interface's queue."""
    rate = min(rate, _MAX_RATE)
    burst = max(_MIN_BURST, rate // 100)
    limit = burst + max(_MIN_BURST, rate // 20)
    await netlink.tc("replace", "tbf", index=index, handle=_SHAPER, rate=rate, burst=burst, limit=limit)


def _unshape_pod(endpoint: LocalEndpoint) -> None:
    with opened(endpoint.netns) as netns, inside(netns):
        pod = Netlink()
    with pod:
        link = pod.link(endpoint.peer_ifname)
        if link is not None:
            pod.do([rtnetlink.delete_queue(link.index, _SHAPER)])


@contextlib.asynccontextmanager
async def _pod_netlink(netns: str) -> AsyncIterator[tuple[Any, int]]:
    """(netlink socket in the namespace, its file descriptor)."""
    with opened(netns) as descriptor:
        with inside(descriptor):
            # A socket belongs to the namespace it was made in; nothing else of the process moves.
            pod = AsyncIPRoute()
            pod.socket  # noqa: B018 - it is made when it is first looked at
        try:
            await pod.setup_endpoint()
            yield pod, descriptor
        finally:
            pod.close()


def _random_mac() -> bytes:
    raw = bytearray(os.urandom(6))
    raw[0] = (raw[0] & 0xFC) | 0x02  # locally administered, unicast
    return bytes(raw)


def _error(error: NetlinkError | NetlinkRefused, what: str) -> Exception:
    reason = os.strerror(error.code)
    if error.code == errno.EEXIST:
        return Conflict(f"{what}: exists already")
    if error.code in (errno.ENOSPC, errno.ENOMEM, errno.ENOBUFS):
        return Exhausted(f"{what}: {reason}")
    return Internal(f"{what}: {reason}")
