"""`peer.Peer/Notify`: the cluster's nodes, for a stock Hubble relay that asks each of them for its flows.

A node is known by its rows of the cluster's address table (identity host or remote-node, which its agent keeps alive)
and reached at the port of this node's own flow API: the port is the same on all nodes, as everywhere in the field.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from services.common.errors import Exhausted
from services.common.pb.peer import peer_pb2 as pb
from services.common.pb.peer import peer_pb2_grpc
from services.flows.entries import NodeRef
from services.flows.observer import may_read
from services.model.addresses import IPAddress, IPNetwork
from services.model.identity import NumericIdentity, Reserved
from services.model.objects import IpDeleted, IpEntry, IpUpserted, Update

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Peer"].full_name
MAX_WAITING = 65_536
"""Notifications that a client may let pile up."""
NODES = frozenset(map(NumericIdentity, (Reserved.HOST, Reserved.REMOTE_NODE)))


@dataclass(frozen=True, slots=True)
class Peer:
    """A node as others reach it."""

    name: str
    address: str
    server_name: str
    """Empty = plaintext."""

    def message(self, kind: pb.ChangeNotificationType.ValueType) -> pb.ChangeNotification:
        """What is told of it."""
        found = pb.ChangeNotification(name=self.name, address=self.address, type=kind)
        if self.server_name:
            found.tls.server_name = self.server_name
        return found


class Peers(peer_pb2_grpc.PeerServicer):
    """`observe` is a driver's observer. `port` 0 = nodes listen nowhere: addresses are told without one."""

    def __init__(self, cluster: str, port: int, *, tls: bool, authorize: Callable[[Any], None] = may_read) -> None:
        self._cluster, self._port, self._tls, self._authorize = cluster, port, tls, authorize
        self._rows: dict[str, dict[IPNetwork, IPAddress]] = {}
        self._owner: dict[IPNetwork, str] = {}
        self._peers: dict[str, Peer] = {}
        self._streams: set[asyncio.Queue[pb.ChangeNotification]] = set()

    def observe(self, update: Update) -> None:
        """Rows of the address table, this node's own included."""
        match update:
            case IpUpserted(entry=entry) if entry.identity in NODES and entry.node:
                self._put(entry)
            case IpUpserted(entry=entry):
                self._remove(entry.prefix)
            case IpDeleted(prefix=prefix):
                self._remove(prefix)
            case _:
                pass

    def _put(self, entry: IpEntry) -> None:
        owner = self._owner.get(entry.prefix)
        if owner not in (None, entry.node):
            self._remove(entry.prefix)
        self._owner[entry.prefix] = entry.node
        self._rows.setdefault(entry.node, {})[entry.prefix] = entry.prefix.network_address
        self._settle(entry.node)

    def _remove(self, prefix: IPNetwork) -> None:
        node = self._owner.pop(prefix, None)
        if node is None:
            return
        del self._rows[node][prefix]
        if not self._rows[node]:
            del self._rows[node]
        self._settle(node)

    def _settle(self, node: str) -> None:
        before, after = self._peers.get(node), self._peer(node)
        if before == after:
            return
        if after is None:
            assert before is not None
            del self._peers[node]
            self._tell(before.message(pb.PEER_DELETED))
            return
        self._peers[node] = after
        self._tell(after.message(pb.PEER_UPDATED if before else pb.PEER_ADDED))

    def _peer(self, node: str) -> Peer | None:
        addresses = self._rows.get(node)
        if not addresses:
            return None
        address = min(addresses.values(), key=lambda each: (each.version, int(each)))
        text = f"[{address}]" if address.version == 6 and self._port else str(address)
        named = NodeRef(node, self._cluster)
        place = f"{text}:{self._port}" if self._port else text
        return Peer(named.absolute, place, named.tls_name if self._tls else "")

    def _tell(self, message: pb.ChangeNotification) -> None:
        for queue in tuple(self._streams):
            if queue.qsize() >= MAX_WAITING:
                self._streams.discard(queue)
            else:
                queue.put_nowait(message)

    async def Notify(  # noqa: N802
        self, request: pb.NotifyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ChangeNotification]:
        """Every node known, then changes, for as long as the client listens."""
        self._authorize(context)
        queue: asyncio.Queue[pb.ChangeNotification] = asyncio.Queue()
        for _, peer in sorted(self._peers.items()):
            queue.put_nowait(peer.message(pb.PEER_ADDED))
        self._streams.add(queue)
        try:
            while queue in self._streams:
                yield await queue.get()
            raise Exhausted(f"{MAX_WAITING} notifications wait: read them faster, or call again")
        finally:
            self._streams.discard(queue)
