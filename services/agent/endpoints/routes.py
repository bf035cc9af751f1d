"""Routes of this node to remote pods, by netlink: desired against actual, until they agree.

`OverlayRoutes` and `NativeRoutes` say which routes there should be; `RouteTable` makes it so. Ours carry a protocol
number and a metric of their own: routes of others, also for the same ranges, are neither changed nor removed.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from services.agent.endpoints import route_messages
from services.agent.endpoints.route_messages import METRIC, Route
from services.common import rtnetlink
from services.common.log import get_logger
from services.common.rtnetlink import Netlink
from services.model.addresses import IPAddress, IPNetwork
from services.model.objects import IpDeleted, IpUpserted, Update

RETRY_SECONDS = 5.0
_PER_TURN = 64
"""Routes in one call of the kernel; others run between calls."""

__all__ = ["OverlayRoutes", "Route", "RouteTable"]


class RouteTable:
    """Keeps the node's routes as desired. Use as a context manager; `run` until cancelled."""

    def __init__(self) -> None:
        self._desired: dict[IPNetwork, Route] = {}
        self._pending: set[IPNetwork] = set()
        self._errors: dict[str, str] = {}
        self._dirty = asyncio.Event()
        self._netlink: Netlink
        self._log = get_logger("endpoint.routes")

    def __enter__(self) -> Self:
        self._netlink = Netlink()
        return self

    def __exit__(
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
        missing, strange = dict(self._desired), []
        for version in (4, 6):
            told = self._netlink.dump(rtnetlink.GET_ROUTE, rtnetlink.rtmsg(version))
            # All of it at once: another question on the socket must not come between the answers.
            for number, body in enumerate([body for body in told if route_messages.is_ours(body)], 1):
                prefix, found, metric = route_messages.read(body)
                if missing.get(prefix) == found and metric == METRIC:
                    del missing[prefix]
                else:
                    strange.append(route_messages.remove(prefix, metric))
                if number % _PER_TURN == 0:
                    await asyncio.sleep(0)
        for first in range(0, len(strange), _PER_TURN):
            self._netlink.attempt(strange[first : first + _PER_TURN])
            await asyncio.sleep(0)
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
                self._apply([self._pending.pop() for _ in range(min(_PER_TURN, len(self._pending)))])
                await asyncio.sleep(0)

    def _apply(self, prefixes: list[IPNetwork]) -> None:
        """Make routes as desired, in one call."""
        routes = [self._desired.get(prefix) for prefix in prefixes]
        messages = [
            route_messages.replace(prefix, route) if route is not None else route_messages.remove(prefix)
            for prefix, route in zip(prefixes, routes, strict=True)
        ]
        _, refusals = self._netlink.attempt(messages)
        refused = {refusal.place: refusal.code for refusal in refusals}
        for place, (prefix, route) in enumerate(zip(prefixes, routes, strict=True)):
            if place in refused:
                self._refused(prefix, route, refused[place])
            elif self._errors and str(prefix) in self._errors:
                del self._errors[str(prefix)]
                self._log.info("route as wanted again", prefix=str(prefix))

    def _refused(self, prefix: IPNetwork, route: Route | None, code: int) -> None:
        if route is None:
            self._log.warning("route not removed", prefix=str(prefix), problem=os.strerror(code))
            return
        # A way that is not there any more is worse than none: packets would end in the wrong place.
        self._netlink.attempt([route_messages.remove(prefix)])
        problem = _explain(code, route)
        if self._errors.get(str(prefix)) != problem:
            self._log.warning("route refused", prefix=str(prefix), problem=problem)
        self._errors[str(prefix)] = problem


def _explain(code: int, route: Route) -> str:
    if route.via is not None and code in (errno.ENETUNREACH, errno.EINVAL, errno.EHOSTUNREACH):
        return f"{route.via} is not on this node's link: let the network route the range, or use routing_mode: tunnel"
    return os.strerror(code)


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
        self._table, self._node = table, node
        source: dict[int, IPAddress] = {address.version: address for address in reversed(list(sources))}
        self._route = {version: Route(ifindex, None, source.get(version)) for version in (4, 6)}
        self._wide = frozenset(wide)
        for prefix in self._wide:
            self._put(prefix)

    def _put(self, prefix: IPNetwork) -> None:
        self._table.put(prefix, self._route[prefix.version])

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
