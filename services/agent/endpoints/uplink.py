"""The uplink as it changes: what fits through it decides what pods may send.

In: link events of the kernel. Out: the MTU of every pod's interface, of the overlay device and of the datapath. A pod's
packet that was made for a larger way meanwhile is answered by the stack (ICMP), never lost in silence.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Protocol, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError

from services.agent.endpoints.kernel_events import NEW_LINK, KernelEvents
from services.common.errors import CiliateError
from services.common.log import get_logger
from services.model.objects import LocalEndpoint


class PodLinks(Protocol):
    """Pods' interfaces."""

    mtu: int

    async def resize(self, endpoint: LocalEndpoint, mtu: int) -> None: ...


class Sizes(Protocol):
    """What follows from a device's MTU."""

    def path_mtu(self, device_mtu: int) -> int: ...

    def pod_mtu(self, device_mtu: int) -> int: ...


class UplinkKeeper:
    """Use as a context manager; `run` until cancelled. `changed` is called after every event of the uplink."""

    def __init__(
        self,
        ifindex: int,
        overlay: int,
        tell_datapath: Callable[[int], None],
        links: PodLinks,
        endpoints: Callable[[], Iterable[LocalEndpoint]],
        sizes: Sizes,
    ) -> None:
        self._ifindex, self._overlay, self._links = ifindex, overlay, links
        self._tell_datapath, self._endpoints, self._sizes = tell_datapath, endpoints, sizes
        self._path = 0
        self._netlink: Any = None
        self.changed: Callable[[], Awaitable[None]] | None = None
        self._log = get_logger("endpoint.uplink")

    async def __aenter__(self) -> Self:
        self._netlink = AsyncIPRoute()
        await self._netlink.setup_endpoint()
        self._events = KernelEvents(rtnl.RTMGRP_LINK)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._netlink.close()
        self._events.close()

    async def run(self) -> None:
        """Follow the uplink, for ever. Starts with what changed while nobody looked."""
        await self._follow(await self._device_mtu())
        async for event in self._events.read():
            if event.kind and (event.kind != NEW_LINK or event.index != self._ifindex):
                continue
            await self._follow(await self._device_mtu())
            if self.changed:
                await self.changed()

    async def _device_mtu(self) -> int:
        return int((await self._netlink.link("get", index=self._ifindex))[0].get_attr("IFLA_MTU"))

    async def _follow(self, device_mtu: int) -> None:
        """The datapath knows of a smaller way before anybody else, and of a larger one after all others."""
        path, pods = self._sizes.path_mtu(device_mtu), self._sizes.pod_mtu(device_mtu)
        if path == self._path:
            return
        if path < self._path:
            self._tell_datapath(path)
        self._log.info("MTU", pods=pods, between_nodes=path, before=self._path)
        self._path, self._links.mtu = path, pods
        await self._resize_overlay(path)
        for endpoint in list(self._endpoints()):
            try:
                await self._links.resize(endpoint, pods)
            except CiliateError as error:
                self._log.warning("a pod keeps its MTU", endpoint_id=endpoint.id, problem=str(error))
        self._tell_datapath(path)

    async def _resize_overlay(self, mtu: int) -> None:
        if not self._overlay:
            return
        try:
            await self._netlink.link("set", index=self._overlay, mtu=mtu)
        except NetlinkError as error:
            self._log.warning("the overlay keeps its MTU", problem=errno.errorcode.get(error.code, str(error.code)))
