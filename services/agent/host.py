"""Whose addresses are this node's own: `host` here, `remote-node` to everybody else. As devices get and lose them.

NodeAddresses ──▶ HostAddresses ──▶ the engine: `host` for every address of the node
              └─▶ advertise ──▶ the cluster's table: `remote-node` for those that others may speak to
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from services.model.addresses import IPAddress, IPNetwork
from services.model.identity import NumericIdentity, Reserved
from services.model.objects import IpDeleted, IpEntry, IpUpserted, NodeAddresses, Update

Table = Callable[[IPNetwork], IpEntry | None]
"""What the cluster's table says of a prefix now."""


class HostAddresses:
    """Turns updates into what the engine is to be told. `official`: what the node has whatever its devices say."""

    def __init__(self, node: str, official: Collection[IPAddress], table: Table = lambda prefix: None) -> None:
        self._node, self._official, self._table = node, frozenset(official), table
        self._own = self._official

    def seen(self, update: Update) -> Sequence[Update]:
        """To everybody else this node is a remote one; here it is the host, whatever the cluster's table says."""
        match update:
            case IpUpserted(entry=entry) if _address(entry.prefix) in self._own:
                return [IpUpserted(replace(entry, identity=NumericIdentity(Reserved.HOST), tunnel=None))]
            case IpDeleted(prefix=prefix) if _address(prefix) in self._own:
                return []
            case NodeAddresses():
                return [*self._have(self._official | update.everywhere()), update]
            case _:
                return [update]

    def _have(self, addresses: frozenset[IPAddress]) -> list[Update]:
        """Exactly these; what the node had and has no more is whatever the cluster's table says."""
        before, self._own = self._own, addresses
        found: list[Update] = [IpUpserted(row) for row in rows(self._node, addresses - before, Reserved.HOST)]
        for address in sorted(before - addresses, key=str):
            prefix = ipaddress.ip_network(address)
            row = self._table(prefix)
            # A row of this node is about to go, too.
            found.append(IpUpserted(row) if row is not None and row.node != self._node else IpDeleted(prefix))
        return found


class Advertised(Protocol):
    """This node's rows in the cluster's table."""

    def put(self, entries: Collection[IpEntry]) -> None: ...

    def remove(self, prefixes: Collection[IPNetwork]) -> None: ...


class Advertiser:
    """Tells the cluster of the addresses on the node's devices; `official` first, with the overlay's end among them."""

    def __init__(self, node: str, official: Sequence[IPAddress], table: Advertised) -> None:
        self._node, self._official, self._table = node, official, table
        self._told: frozenset[IPAddress] = frozenset()
        self._tell(official)

    def observe(self, update: Update) -> None:
        """Every update passes here."""
        if isinstance(update, NodeAddresses):
            self._tell([*self._official, *update.on_devices()])

    def _tell(self, addresses: Collection[IPAddress]) -> None:
        wanted = frozenset(addresses)
        gone, self._told = self._told - wanted, wanted
        self._table.put(rows(self._node, wanted, Reserved.REMOTE_NODE, self._official[0]))
        self._table.remove([ipaddress.ip_network(address) for address in gone])


def rows(
    node: str, addresses: Collection[IPAddress], identity: Reserved, tunnel: IPAddress | None = None
) -> list[IpEntry]:
    """The address table's rows of a node itself."""
    number = NumericIdentity(identity)
    return [IpEntry(ipaddress.ip_network(a), number, node, tunnel) for a in sorted(addresses, key=str)]


def _address(prefix: IPNetwork) -> IPAddress | None:
    """The address that a prefix is, if it is one."""
    return prefix.network_address if prefix.prefixlen == prefix.max_prefixlen else None
