"""The node's devices towards other nodes and the outside, as they come and go, and the addresses on them.

AddressKeeper (kernel events) ──▶ NodeDevices ─┬─▶ map `netdevs`: what leaves is masqueraded with
                                               └─▶ hooks on a device that was made anew
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from services.agent.abi.nat import NETDEV_NODE
from services.agent.datapath.reconcile import MapAccess, MapReconciler
from services.agent.server.state import component
from services.agent.translation import netdev_entries
from services.common.errors import CiliateError
from services.common.log import get_logger
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.addresses import IPAddress
from services.model.objects import NodeAddresses


class Hooks(Protocol):
    """Puts programs on devices."""

    async def attach_netdev(self, ifindexes: Collection[int]) -> None: ...


class NodeDevices:
    """`indexes`: name -> index of what was there at the start. `official`: the node's own addresses, with which it
    speaks on the overlay (`overlay`: its index, 0 = none)."""

    def __init__(
        self, indexes: Mapping[str, int], official: Sequence[IPAddress], overlay: int, netdevs: MapAccess, hooks: Hooks
    ) -> None:
        self._present, self._official, self._overlay = dict(indexes), tuple(official), overlay
        self._map, self._hooks = MapReconciler(netdevs), hooks
        self._names, self._attached = tuple(indexes), False
        self._entries: dict[bytes, bytes] = {}
        self._problems: dict[str, str] = {}
        self._log = get_logger("devices")

    @property
    def indexes(self) -> list[int]:
        """Those that are there."""
        return list(self._present.values())

    async def follow(self, indexes: Mapping[str, int], addresses: NodeAddresses) -> None:
        """This is what there is now. What fails is in the status and is tried again with the next change."""
        present = {name: indexes[name] for name in self._names if name in indexes}
        self._problems = {name: "there is no such interface any more" for name in self._names if name not in present}
        found: dict[int, Sequence[IPAddress]] = {
            index: addresses.interfaces.get(name, ()) for name, index in present.items()
        }
        self._write(found | {NETDEV_NODE: self._official, self._overlay: self._official})
        if present == self._present:
            return
        self._log.info("devices changed", before=self._present, now=present)
        self._present = present
        if self._attached:
            await self._attach()

    async def enforce(self) -> None:
        """Programs on all of them, and from now on on those that come."""
        self._attached = True
        await self._hooks.attach_netdev(self.indexes)

    async def _attach(self) -> None:
        try:
            await self._hooks.attach_netdev(self.indexes)
        except CiliateError as error:
            self._problems["hooks"] = str(error)
            self._log.warning("devices without programs", problem=str(error))

    def _write(self, found: Mapping[int, Sequence[IPAddress]]) -> None:
        entries = netdev_entries(found)
        if entries == self._entries and not self._map.pending:
            return
        self._entries = entries
        self._map.prune(entries)
        if self._map.pending:
            self._problems["netdevs"] = f"map netdevs: {self._map.last_error}"

    def check(self) -> pb.Component:
        """For the status."""
        return component("devices", self._problems, good=", ".join(self._present))
