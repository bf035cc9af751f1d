"""This node's own addresses as they change: egress gateways leave with one of them.

In: address and default route events of the kernel. Out: `NodeAddresses`, whenever they are others than before.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

from pyroute2.netlink import rtnl

from services.agent.endpoints.kernel_events import (
    DELETE_ADDRESS,
    DELETE_ROUTE,
    NEW_ADDRESS,
    NEW_ROUTE,
    KernelEvents,
)
from services.common.rtnetlink import Netlink
from services.model.addresses import IPAddress
from services.model.objects import NodeAddresses, Update

SETTLE_SECONDS = 0.05
"""Addresses come in crowds, at a link's start for instance."""
_GROUPS = rtnl.RTMGRP_IPV4_IFADDR | rtnl.RTMGRP_IPV6_IFADDR | rtnl.RTMGRP_IPV4_ROUTE | rtnl.RTMGRP_IPV6_ROUTE
_GLOBAL = 0
"""RT_SCOPE_UNIVERSE: addresses that others can answer to."""


Found = Callable[[Mapping[str, int], NodeAddresses], Awaitable[None]]
"""Hears of every look: interfaces' indexes by name, and the addresses."""


class AddressKeeper:
    """Use as a context manager; `run` until cancelled. `own`: the node's official addresses; `devices`: names of its
    devices towards other nodes and the outside."""

    def __init__(
        self, own: Collection[IPAddress], devices: Sequence[str], tell: Callable[[Update], None], found: Found
    ) -> None:
        self._own, self._devices, self._tell, self._found = tuple(own), tuple(devices), tell, found
        self._last: NodeAddresses | None = None
        self._dirty = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._events = KernelEvents(_GROUPS)
        await self.look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()

    async def look(self) -> None:
        """Ask the kernel, and tell what is new."""
        with Netlink() as netlink:
            names = {link.index: link.name for link in netlink.links()}
            found: dict[str, list[IPAddress]] = {}
            for index, scope, raw in netlink.addresses():
                if scope == _GLOBAL and index in names:
                    found.setdefault(names[index], []).append(ipaddress.ip_address(raw))
            # Where the outside is: the default route with the smallest metric, IPv4's before IPv6's.
            routes = [route for route in netlink.default_routes() if route[2] in names]
            default = names[min(routes)[2]] if routes else ""
        addresses = {name: tuple(sorted(have, key=self._rank)) for name, have in sorted(found.items())}
        now = NodeAddresses(addresses, default or self._official(addresses), self._devices)
        await self._found({name: index for index, name in names.items()}, now)
        if now != self._last:
            self._last = now
            self._tell(now)

    def _rank(self, address: IPAddress) -> int:
        return self._own.index(address) if address in self._own else len(self._own)

    def _official(self, interfaces: dict[str, tuple[IPAddress, ...]]) -> str:
        """Without a default route: the interface with the node's first address."""
        return next((name for name, have in interfaces.items() if self._own and self._own[0] in have), "")

    async def run(self) -> None:
        """Follow the kernel, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="addresses:events")
            tasks.create_task(self._follow(), name="addresses:look")

    async def _listen(self) -> None:
        async for event in self._events.read():
            link_local = event.kind in (NEW_ADDRESS, DELETE_ADDRESS) and event.scope != _GLOBAL
            not_default = event.kind in (NEW_ROUTE, DELETE_ROUTE) and event.prefix_length
            if not link_local and not not_default:
                self._dirty.set()

    async def _follow(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self._dirty.clear()
            await self.look()
