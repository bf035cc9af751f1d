"""veth pairs between the node and its pods, by netlink (pyroute2). The one module that touches pod namespaces.

    pod:  eth0  A/32, B/128   default via 169.254.1.1 / fe80::1, permanent neighbour = the host side's MAC
    node: cil…  A/32, B/128 -> cil…, permanent neighbour = the pod side's MAC

Nobody asks for link addresses: ARP and neighbour discovery stay out of the datapath.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.common.errors import Conflict, Exhausted, Internal, NotFound
from services.common.netns import inside, opened
from services.model.addresses import IPAddress
from services.model.bandwidth import Limits
from services.model.objects import LocalEndpoint

PREFIX = "cil"
_SHAPER = 0xC1110000
"""Handle of our queues."""
_ROOT = 0xFFFFFFFF
_MIN_BURST = 1 << 17
"""Two packets of the largest size: smaller buckets cut them up."""
_MAX_RATE = (1 << 32) - 1
"""Bytes per second that the kernel's field holds: 34 Gbit/s, above which no veth gets on its own."""
GATEWAY4 = ipaddress.IPv4Address("169.254.1.1")
GATEWAY6 = ipaddress.IPv6Address("fe80::1")
_NODAD, _PERMANENT, _ONLINK = 0x02, 0x80, 0x4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253


@dataclass(frozen=True, slots=True)
class Attachment:
    """A pod's place: the path of its network namespace and the name of the interface in it."""

    container_id: str
    netns: str
    ifname: str

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
        self._netlink = AsyncIPRoute()
        await self._netlink.setup_endpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._netlink.close()

    async def create(self, attachment: Attachment, addresses: tuple[IPAddress, ...]) -> VethPair:
        """Make the pair, addresses and routes on both sides; an unfinished one of an earlier try is replaced.

        Raises `Invalid` (no such namespace), `Conflict` (the interface name is taken in the pod), `Internal`.
        """
        name = attachment.host_ifname
        mac, node_mac = _random_mac(), _random_mac()
        await self.delete(name)
        try:
            async with _pod_netlink(attachment.netns) as (pod, netns_fd):
                await self._make(attachment, netns_fd, mac, node_mac)
                ifindex = await self._wire_node(name, addresses, mac)
                await _wire_pod(pod, attachment.ifname, addresses, node_mac)
        except NetlinkError as error:
            await self.delete(name)
            raise _error(error, f"interface {attachment.ifname} in {attachment.netns}") from error
        except BaseException:
            await self.delete(name)
            raise
        return VethPair(ifindex, name, mac, node_mac)

    async def delete(self, ifname: str) -> None:
        """Remove a host side, and with it the pair; absent = success."""
        try:
            index = await self.index(ifname)
            if index:
                await self._netlink.link("del", index=index)
        except NetlinkError as error:
            if error.code not in (errno.ENODEV, errno.ENOENT):
                raise _error(error, f"interface {ifname}") from error

    async def index(self, ifname: str) -> int:
        """The interface's index, 0 where there is none."""
        try:
            found = await self._netlink.link("get", ifname=ifname)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return 0
            raise _error(error, f"interface {ifname}") from error
        return int(found[0]["index"]) if found else 0

    async def ours(self) -> dict[str, int]:
        """Name -> index of every interface that an agent of this node made."""
        links = [link async for link in await self._netlink.get_links()]
        return {
            link.get("ifname"): int(link["index"])
            for link in links
            if link.get("ifalias") == self._alias and link.get("ifname").startswith(PREFIX)
        }

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
            async with _pod_netlink(endpoint.netns) as (pod, _fd):
                index = (await pod.link("get", ifname=endpoint.peer_ifname))[0]["index"]
                await _shape(pod, index, limits.egress)
            await _shape(self._netlink, endpoint.ifindex, limits.ingress)
        except NetlinkError as error:
            raise _error(error, f"interface {endpoint.ifname}: bandwidth") from error

    async def _make(self, attachment: Attachment, netns_fd: int, mac: bytes, node_mac: bytes) -> None:
        peer = {"ifname": attachment.ifname, "address": mac.hex(":"), "net_ns_fd": netns_fd, "mtu": self.mtu}
        await self._netlink.link(
            "add", kind="veth", ifname=attachment.host_ifname, address=node_mac.hex(":"), mtu=self.mtu, peer=peer
        )

    async def _wire_node(self, ifname: str, addresses: tuple[IPAddress, ...], mac: bytes) -> int:
        index = await self.index(ifname)
        await self._netlink.link("set", index=index, state="up", ifalias=self._alias)
        for address in addresses:
            family, bits = _family(address), address.max_prefixlen
            await self._netlink.neigh(
                "replace", dst=str(address), lladdr=mac.hex(":"), ifindex=index, family=family, state=_PERMANENT
            )
            await self._netlink.route("replace", dst=f"{address}/{bits}", oif=index, family=family, scope=_SCOPE_LINK)
        return index


async def _wire_pod(pod: Any, ifname: str, addresses: tuple[IPAddress, ...], node_mac: bytes) -> None:
    await pod.link("set", index=1, state="up")
    index = (await pod.link("get", ifname=ifname))[0]["index"]
    await pod.link("set", index=index, state="up")
    for address in addresses:
        family, bits = _family(address), address.max_prefixlen
        gateway = GATEWAY4 if address.version == 4 else GATEWAY6
        # Nobody else can have the address, so IPv6 need not ask before it is used.
        flags = {"flags": _NODAD} if address.version == 6 else {}
        await pod.addr("add", index=index, address=str(address), prefixlen=bits, family=family, **flags)
        await pod.neigh(
            "replace", dst=str(gateway), lladdr=node_mac.hex(":"), ifindex=index, family=family, state=_PERMANENT
        )
        await pod.route(
            "replace",
            dst="default",
            gateway=str(gateway),
            oif=index,
            family=family,
            flags=_ONLINK,
            scope=_SCOPE_UNIVERSE,
        )


async def _shape(netlink: Any, index: int, rate: int) -> None:
    """A token bucket of `rate` bytes per second as the interface's queue; 0 = none. Other queues are not ours."""
    present = False
    async for queue in await netlink.get_qdiscs(index=index):
        present |= queue.get_attr("TCA_KIND") == "tbf" and queue["handle"] == _SHAPER
    if rate:
        rate = min(rate, _MAX_RATE)
        burst = max(_MIN_BURST, rate // 100)
        limit = burst + max(_MIN_BURST, rate // 20)
        await netlink.tc("replace", "tbf", index=index, handle=_SHAPER, rate=rate, burst=burst, limit=limit)
    elif present:
        await netlink.tc("del", index=index, handle=_SHAPER, parent=_ROOT)


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


def _family(address: IPAddress) -> int:
    return 2 if address.version == 4 else 10


def _error(error: NetlinkError, what: str) -> Exception:
    reason = os.strerror(error.code)
    if error.code == errno.EEXIST:
        return Conflict(f"{what}: exists already")
    if error.code in (errno.ENOSPC, errno.ENOMEM, errno.ENOBUFS):
        return Exhausted(f"{what}: {reason}")
    return Internal(f"{what}: {reason}")
