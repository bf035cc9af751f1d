"""Hooks and devices by netlink (pyroute2): tc filters, the VXLAN device, routes to remote pods.

A filter is replaced in place (same priority and handle), so there is never a moment without one. Everything is
idempotent and survives the agent. Where an interface's hook has gone ahead of the filters (tcx), it is replaced there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.agent.datapath import syscall, tcx
from services.agent.datapath.maps import translate
from services.agent.datapath.tcx import Hook
from services.common import rtnetlink
from services.common.errors import CiliateError, Conflict, Denied, Internal, NotFound
from services.common.rtnetlink import Netlink, NetlinkRefused
from services.model.addresses import IPAddress, IPNetwork

INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
"""The two parents of a clsact qdisc: the kernel's directions, not policy's."""
_PARENTS = {Hook.INGRESS: INGRESS, Hook.EGRESS: EGRESS}
PRIORITY = 1
HANDLE = 1
VXLAN = "ciliate_vxlan"
OVERHEAD4, OVERHEAD6 = 50, 70
"""Bytes that VXLAN adds over IPv4 and IPv6."""
_PER_CALL = 256
"""Interfaces in one call: what is sent and answered stays below a socket's buffers."""
_NOARP = 0x80
_UP = 0x1
_SCOPE_LINK = 253
_PROTOCOL = 99
"""Marks our routes (rtm_protocol), so that a sweep touches no others."""


def _netlink_error(error: NetlinkError, what: str) -> CiliateError:
    message = f"{what}: {os.strerror(error.code)}"
    if error.code in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
        return NotFound(message)
    if error.code in (errno.EPERM, errno.EACCES):
        return Denied(f"{message}; the agent needs root")
    return Conflict(message) if error.code == errno.EEXIST else Internal(message)


@asynccontextmanager
async def netlink() -> AsyncIterator[Any]:
    """A netlink socket of the current network namespace; its errors leave as ours."""
    async with AsyncIPRoute() as ipr:
        yield ipr


class Hooks:
    """Puts pinned programs (`progs`: their folder) on interfaces of this network namespace, many in one call. Use as a
    context manager."""

    def __init__(self, progs: Path) -> None:
        self._progs, self._open = progs, dict[str, int]()

    def __enter__(self) -> Self:
        self._netlink = Netlink()
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()
        for program in self._open.values():
            os.close(program)

    def put(self, ifindexes: Sequence[int], egress: str, ingress: str) -> None:
        """Put, or replace in place, two programs by name. What comes in from an interface is hooked last: until both
        are there, nothing enters that would not be checked."""
        for at in range(0, len(ifindexes), _PER_CALL):
            messages, owners = list[rtnetlink.Message](), list[int]()
            for index in ifindexes[at : at + _PER_CALL]:
                mine = self._messages(index, egress, ingress)
                messages, owners = messages + mine, owners + [index] * len(mine)
            try:
                self._netlink.do(messages)
            except NetlinkRefused as error:
                raise _refused(error, f"hooks {egress}, {ingress} on interface {owners[error.place]}") from error

    def _messages(self, index: int, egress: str, ingress: str) -> list[rtnetlink.Message]:
        made = [rtnetlink.add_clsact(index)]
        for hook, name in ((Hook.EGRESS, egress), (Hook.INGRESS, ingress)):
            program = self._program(name)
            if not tcx.replace(index, hook, program):
                made.append(rtnetlink.set_program(index, _PARENTS[hook], PRIORITY, HANDLE, program, name))
        return made

    def advance(self, ifindex: int, hook: Hook, name: str) -> None:
        """Take a hook ahead of the filters, where packets meet it sooner. The new place works before the old one is
        given up, and what is decided there is final: no packet meets the program twice, or not at all.

        Waits (see tcx). Raises `NotFound` (the interface is gone), `Unavailable` (an older kernel).
        """
        try:
            tcx.put(ifindex, hook, self._program(name))
            self._netlink.do([rtnetlink.delete_program(ifindex, _PARENTS[hook], PRIORITY, HANDLE)])
        except NetlinkRefused as error:
            raise _refused(error, f"filter of {name} on interface {ifindex}") from error

    def _program(self, name: str) -> int:
        if name not in self._open:
            try:
                self._open[name] = syscall.obj_get(self._progs / name)
            except OSError as error:
                raise translate(error, f"program {self._progs / name}") from error
        return self._open[name]

    def take(self, keep: Collection[int]) -> list[int]:
        """Take those of the node's devices from every interface but those to `keep`; where they were. The qdisc and
        others' filters stay."""
        found = []
        for link in list(self._netlink.links()):
            if link.index in keep:
                continue
            for parent, name in ((INGRESS, "from_netdev"), (EGRESS, "to_netdev")):
                if name in rtnetlink.programs(self._netlink, link.index, parent):
                    self._netlink.do([rtnetlink.delete_program(link.index, parent, PRIORITY, HANDLE)])
                    found.append(link.index)
        return sorted(set(found))


def _refused(error: NetlinkRefused, what: str) -> CiliateError:
    return _netlink_error(NetlinkError(error.code), what)


async def attach_endpoint(ifindex: int, progs: Path) -> None:
    """Put (or replace) the hooks on the host side of a pod's veth. `progs`: folder of pinned programs."""
    await attach_endpoints([ifindex], progs)


async def attach_endpoints(ifindexes: Sequence[int], progs: Path) -> None:
    """The same for many."""
    with Hooks(progs) as hooks:
        hooks.put(ifindexes, "to_endpoint", "from_endpoint")


ENDPOINT_AHEAD = ((Hook.INGRESS, "from_endpoint"),)
OVERLAY_AHEAD = ((Hook.EGRESS, "to_overlay"), (Hook.INGRESS, "from_overlay"))
"""Hooks that go ahead of the filters: those that packets on their usual way meet, on interfaces that are ours."""


def advance(ifindex: int, progs: Path, hooks: Sequence[tuple[Hook, str]] = ENDPOINT_AHEAD) -> None:
    """Take an interface's hooks ahead of its filters; see `Hooks.advance`."""
    with Hooks(progs) as attached:
        for hook, name in hooks:
            attached.advance(ifindex, hook, name)


async def attach_overlay(ifindex: int, progs: Path) -> None:
    """Put (or replace) the hooks on the VXLAN device."""
    with Hooks(progs) as hooks:
        hooks.put([ifindex], "to_overlay", "from_overlay")


async def attach_netdev(ifindex: int, progs: Path) -> None:
    """Put (or replace) the hooks on one of the node's own devices. The qdisc may be somebody else's already."""
    with Hooks(progs) as hooks:
        hooks.put([ifindex], "to_netdev", "from_netdev")


async def detach_netdev(keep: Collection[int] = ()) -> list[int]:
    """Take our hooks from every device but those to `keep`; where they were. The qdisc and others' filters stay."""
    with Hooks(Path()) as hooks:
        return hooks.take(keep)


async def filter_names(ipr: Any, ifindex: int, parent: int) -> list[str]:
    """Names of the programs of one hook of an interface, whoever's they are."""
    try:
        filters = [message async for message in await ipr.get_filters(index=ifindex, parent=parent)]
    except NetlinkError:
        return []  # a device without queueing has none
    options = [message.get_attr("TCA_OPTIONS") for message in filters]
    names = [option.get_attr("TCA_BPF_NAME") for option in options if option and hasattr(option, "get_attr")]
    return [str(name) for name in names if name]


async def detach(ifindex: int) -> None:
    """Take both hooks away, with the qdisc; an interface without them is a success."""
    for hook, name in ENDPOINT_AHEAD:
        tcx.remove(ifindex, hook, [name])
    async with netlink() as ipr:
        try:
            await ipr.tc("del", "clsact", index=ifindex)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                raise _netlink_error(error, f"clsact on interface {ifindex}") from error


async def ensure_vxlan(name: str = VXLAN, port: int = 8472, mtu: int = 1450) -> int:
    """The VXLAN device in external mode (the programs say per packet where to), up. Returns its index.

    One of another kind or port is replaced. No ARP: there is one "neighbour", the overlay.
    """
    async with netlink() as ipr:
        index = await _existing_vxlan(ipr, name, port)
        try:
            if index is None:
                await ipr.link(
                    "add",
                    ifname=name,
                    kind="vxlan",
                    vxlan_port=port,
                    vxlan_collect_metadata=1,
                    vxlan_learning=0,
                    vxlan_udp_zero_csum6_rx=1,
                )
                index = (await ipr.link_lookup(ifname=name))[0]
            await ipr.link("set", index=index, mtu=mtu, flags=_UP | _NOARP, change=_UP | _NOARP)
        except NetlinkError as error:
            raise _netlink_error(error, f"overlay device {name}") from error
    return int(index)


async def queues_by_departure(ifindex: int, *, install: bool) -> bool:
    """Whether a device's queue is fq; with `install` it becomes so, or `NotFound` says that the kernel has none."""
    async with netlink() as ipr:
        kinds = {(q.get_attr("TCA_KIND"), q["parent"]) async for q in await ipr.get_qdiscs(index=ifindex)}
        if any(kind == "fq" for kind, _parent in kinds):
            return True
        if not install:
            return False
        try:
            await ipr.tc("replace", "fq", index=ifindex)
        except NetlinkError as error:
            raise _netlink_error(error, f"bandwidth: edt needs the queue fq on interface {ifindex}") from error
    return True


async def remove_vxlan(name: str = VXLAN) -> None:
    """Take the overlay device away, if there is one; a device of another kind with its name stays."""
    async with netlink() as ipr:
        for index in await ipr.link_lookup(ifname=name):
            info = (await ipr.link("get", index=index))[0].get_attr("IFLA_LINKINFO")
            if info and info.get_attr("IFLA_INFO_KIND") == "vxlan":
                await ipr.link("del", index=index)


async def _existing_vxlan(ipr: Any, name: str, port: int) -> int | None:
    found = await ipr.link_lookup(ifname=name)
    if not found:
        return None
    link = (await ipr.link("get", index=found[0]))[0]
    info = link.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    if data is not None and info.get_attr("IFLA_INFO_KIND") == "vxlan" and data.get_attr("IFLA_VXLAN_PORT") == port:
        return int(found[0])
    await ipr.link("del", index=found[0])
    return None


async def ensure_routes(ifindex: int, routes: Mapping[IPNetwork, IPAddress | None]) -> None:
    """Send the node's own packets for remote pods to the overlay: prefix -> source address (the node's) or None.

    Routes on the device that are not wanted any more are removed.
    """
    async with netlink() as ipr:
        for family in (4, 6):
            wanted = {str(net): source for net, source in routes.items() if net.version == family}
            for destination in await _present_routes(ipr, ifindex, family):
                if destination not in wanted:
                    await ipr.route("del", dst=destination, oif=ifindex, proto=_PROTOCOL)
            for destination, source in wanted.items():
                options: dict[str, Any] = {"prefsrc": str(source)} if source is not None else {}
                if family == 4:
                    options["scope"] = _SCOPE_LINK
                try:
                    await ipr.route("replace", dst=destination, oif=ifindex, proto=_PROTOCOL, **options)
                except NetlinkError as error:
                    raise _netlink_error(error, f"route to {destination}") from error


async def _present_routes(ipr: Any, ifindex: int, family: int) -> list[str]:
    return [
        f"{route.get_attr('RTA_DST')}/{route['dst_len']}"
        async for route in await ipr.route("dump", family=2 if family == 4 else 10)
        if route["proto"] == _PROTOCOL and route.get_attr("RTA_OIF") == ifindex
    ]
