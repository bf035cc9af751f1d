"""Routes of this node to remote pods, by netlink: desired against actual, until they agree.

`OverlayRoutes` and `NativeRoutes` say which routes there should be; `RouteTable` makes it so. Ours carry a protocol
number and a metric of their own: routes of others, also for the same ranges, are neither changed nor removed.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.common.log import get_logger
from services.model.addresses import IPAddress, IPNetwork
from services.model.objects import IpDeleted, IpUpserted, Update

PROTOCOL = 99
"""Marks our routes (rtm_protocol), so that a sweep touches no others."""
METRIC = 2042
"""Routes with equal metrics replace one another; anybody else's with a smaller one goes before ours."""
RETRY_SECONDS = 5.0
_SCOPE_UNIVERSE, _SCOPE_LINK, _UNREACHABLE = 0, 253, 7
_ANY_SCOPE = 255
"""RT_SCOPE_NOWHERE: in deletions, whatever the scope."""
_PER_TURN = 64


@dataclass(frozen=True, slots=True)
class Route:
    """Where a range is. Neither `oif` nor `via`: nowhere (the sender is told at once)."""

    oif: int = 0
    via: IPAddress | None = None
    source: IPAddress | None = None
    """What the node's own packets call themselves; None = the kernel chooses."""


class RouteTable:
    """Keeps the node's routes as desired. Use as a context manager; `run` until cancelled."""

    def __init__(self) -> None:
        self._desired: dict[IPNetwork, Route] = {}
        self._pending: set[IPNetwork] = set()
        self._errors: dict[str, str] = {}
        self._dirty = asyncio.Event()
        self._netlink: Any = None
        self._log = get_logger("endpoint.routes")

    async def __aenter__(self) -> Self:
        self._netlink = AsyncIPRoute()
        await self._netlink.setup_endpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._netlink.close()

    @property
    def desired(self) -> Mapping[IPNetwork, Route]:
        """Every route that there should be."""
        return self._desired

    @property
    def errors(self) -> Mapping[str, str]:
        """Range -> why the kernel does not take its route."""
        return self._errors

    def put(self, prefix: IPNetwork, route: Route) -> None:
        """There should be this route; cheap."""
        if self._desired.get(prefix) != route:
            self._desired[prefix] = route
            self._mark(prefix)

    def remove(self, prefix: IPNetwork) -> None:
        """There should be no route; absent = success."""
        if self._desired.pop(prefix, None) is not None:
            self._mark(prefix)

    def _mark(self, prefix: IPNetwork) -> None:
        self._pending.add(prefix)
        self._dirty.set()

    async def sweep(self) -> None:
        """Compare with the kernel: remove ours that should not be, put back those that went missing."""
        missing = dict(self._desired)
        for family in (2, 10):
            async for message in await self._netlink.route("dump", family=family):
                if message["proto"] != PROTOCOL:
                    continue
                prefix, found = _read(message)
                if missing.get(prefix) == found and message.get_attr("RTA_PRIORITY") == METRIC:
                    del missing[prefix]
                else:
                    await self._delete(prefix, message.get_attr("RTA_PRIORITY") or 0)
        for prefix in missing:
            self._mark(prefix)

    async def run(self) -> None:
        """Apply what changed, for ever; what was refused is tried again from time to time."""
        while True:
            try:
                async with asyncio.timeout(RETRY_SECONDS if self._errors else None):
                    await self._dirty.wait()
            except TimeoutError:
                self._pending |= {prefix for prefix in self._desired if str(prefix) in self._errors}
            self._dirty.clear()
            while self._pending:
                for _ in range(min(_PER_TURN, len(self._pending))):
                    await self._apply(self._pending.pop())
                await asyncio.sleep(0)

    async def _apply(self, prefix: IPNetwork) -> None:
        route = self._desired.get(prefix)
        if route is None:
            self._errors.pop(str(prefix), None)
            await self._delete(prefix, METRIC)
            return
        try:
            options = _options(prefix, route) | {"proto": PROTOCOL, "priority": METRIC}
            await self._netlink.route("replace", dst=str(prefix), **options)
        except NetlinkError as error:
            # A way that is not there any more is worse than none: packets would end in the wrong place.
            await self._delete(prefix, METRIC)
            problem = _explain(error, route)
            if self._errors.get(str(prefix)) != problem:
                self._log.warning("route refused", prefix=str(prefix), problem=problem)
            self._errors[str(prefix)] = problem
            return
        if self._errors.pop(str(prefix), None):
            self._log.info("route in place again", prefix=str(prefix))

    async def _delete(self, prefix: IPNetwork, metric: int) -> None:
        options: dict[str, Any] = {"priority": metric} if metric else {}
        family = 2 if prefix.version == 4 else 10
        try:
            # No scope and no device: whatever the route looks like, the protocol says that it is ours.
            await self._netlink.route(
                "del", dst=str(prefix), family=family, proto=PROTOCOL, scope=_ANY_SCOPE, type=0, **options
            )
        except NetlinkError as error:
            if error.code not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
                self._log.warning("route not removed", prefix=str(prefix), problem=os.strerror(error.code))


def _options(prefix: IPNetwork, route: Route) -> dict[str, Any]:
    options: dict[str, Any] = {"family": 2 if prefix.version == 4 else 10}
    if route.source is not None and route.source.version == prefix.version:
        options["prefsrc"] = str(route.source)
    if route.via is not None:
        return options | {"gateway": str(route.via), "oif": route.oif, "scope": _SCOPE_UNIVERSE}
    if route.oif:
        return options | {"oif": route.oif} | ({"scope": _SCOPE_LINK} if prefix.version == 4 else {})
    return options | {"type": _UNREACHABLE, "scope": _SCOPE_UNIVERSE}


def _read(message: Any) -> tuple[IPNetwork, Route]:
    """A route as the kernel tells it. An unreachable one of IPv6 lies on the loopback device."""
    default = "0.0.0.0" if message["family"] == 2 else "::"
    prefix = ipaddress.ip_network(f"{message.get_attr('RTA_DST') or default}/{message['dst_len']}")
    if message["type"] == _UNREACHABLE:
        return prefix, Route()
    via, source = message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_PREFSRC")
    return prefix, Route(
        message.get_attr("RTA_OIF") or 0,
        ipaddress.ip_address(via) if via else None,
        ipaddress.ip_address(source) if source else None,
    )


def _explain(error: NetlinkError, route: Route) -> str:
    if route.via is not None and error.code in (errno.ENETUNREACH, errno.EINVAL, errno.EHOSTUNREACH):
        return f"{route.via} is not on this node's link: let the network route the range, or use routing_mode: tunnel"
    return os.strerror(error.code)


class OverlayRoutes:
    """The node's own way to remote pods: into the overlay, one route per row of the address table, or a few wide ones.

    Pods' packets need none of this (the datapath sends them itself), unless they are too large for the overlay: then
    the stack tells the pod. They are for the node's processes: kubelet probes, host-network pods.
    """

    def __init__(
        self,
        table: RouteTable,
        node: str,
        ifindex: int,
        sources: Iterable[IPAddress],
        wide: Iterable[IPNetwork] = (),
    ) -> None:
        self._table, self._node, self._ifindex = table, node, ifindex
        self._source: dict[int, IPAddress] = {address.version: address for address in reversed(list(sources))}
        self._wide = frozenset(wide)
        for prefix in self._wide:
            self._put(prefix)

    def _put(self, prefix: IPNetwork) -> None:
        self._table.put(prefix, Route(self._ifindex, None, self._source.get(prefix.version)))

    def observe(self, update: Update) -> None:
        """Follow the address table; cheap."""
        if self._wide:
            return
        match update:
            # Nodes' own addresses are reached as they are: the overlay itself runs over them.
            case IpUpserted(entry=entry) if entry.node != self._node and entry.tunnel is not None and entry.pod:
                self._put(entry.prefix)
            case IpUpserted(entry=entry):
                self._table.remove(entry.prefix)
            case IpDeleted(prefix=prefix):
                self._table.remove(prefix)
            case _:
                pass
