"""The node's own way to remote pods: routes into the overlay, one per row of the address table, or a few wide ones.

Pods' packets need none of this (the datapath sends them itself); these are for the node's processes: kubelet probes,
host-network pods. With `wide` ranges given, only those are routed, however many pods there are.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.common.log import get_logger
from services.model.addresses import IPAddress, IPNetwork
from services.model.objects import IpDeleted, IpUpserted, Update

_PROTOCOL = 99
"""Marks our routes (rtm_protocol), so that a sweep touches no others."""
_SCOPE_LINK = 253
_PER_TURN = 64


class OverlayRoutes:
    """Keeps routes on the overlay device. Use as a context manager; `run` until cancelled."""

    def __init__(self, node: str, ifindex: int, sources: Iterable[IPAddress], wide: Iterable[IPNetwork] = ()) -> None:
        self._node, self._ifindex = node, ifindex
        self._source: dict[int, str] = {address.version: str(address) for address in reversed(list(sources))}
        self._wide = frozenset(wide)
        self._wanted: set[IPNetwork] = set(self._wide)
        self._pending: set[IPNetwork] = set(self._wide)
        self._dirty = asyncio.Event()
        self._netlink: Any = None
        self._log = get_logger("endpoint.routes")

    async def __aenter__(self) -> Self:
        self._netlink = AsyncIPRoute()
        await self._netlink.setup_endpoint()
        self._dirty.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._netlink.close()

    def observe(self, update: Update) -> None:
        """Follow the address table; cheap."""
        if self._wide:
            return
        match update:
            case IpUpserted(entry=entry):
                # Nodes' own addresses are reached as they are: the overlay itself runs over them.
                self._want(entry.prefix, entry.node != self._node and entry.tunnel is not None and bool(entry.pod))
            case IpDeleted(prefix=prefix):
                self._want(prefix, False)
            case _:
                pass

    def _want(self, prefix: IPNetwork, wanted: bool) -> None:
        if wanted == (prefix in self._wanted) or prefix.version not in self._source:
            return
        (self._wanted.add if wanted else self._wanted.discard)(prefix)
        self._pending.add(prefix)
        self._dirty.set()

    async def sweep(self) -> None:
        """Once the address table is complete: remove routes of rows that are gone."""
        wanted = {str(prefix) for prefix in self._wanted}
        for family in (2, 10):
            async for route in await self._netlink.route("dump", family=family):
                destination = f"{route.get_attr('RTA_DST')}/{route['dst_len']}"
                ours = route["proto"] == _PROTOCOL and route.get_attr("RTA_OIF") == self._ifindex
                if ours and destination not in wanted:
                    await self._apply("del", destination, 4 if family == 2 else 6)

    async def run(self) -> None:
        """Apply what changed, for ever."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            while self._pending:
                for _ in range(min(_PER_TURN, len(self._pending))):
                    prefix = self._pending.pop()
                    await self._apply("replace" if prefix in self._wanted else "del", str(prefix), prefix.version)
                await asyncio.sleep(0)

    async def _apply(self, command: str, destination: str, version: int) -> None:
        options: dict[str, Any] = {"scope": _SCOPE_LINK} if version == 4 else {}
        if command == "replace":
            options["prefsrc"] = self._source[version]
        try:
            await self._netlink.route(command, dst=destination, oif=self._ifindex, proto=_PROTOCOL, **options)
        except NetlinkError as error:
            if command == "del" and error.code in (errno.ESRCH, errno.ENOENT):
                return
            self._log.warning("overlay route failed", command=command, prefix=destination, problem=str(error))
