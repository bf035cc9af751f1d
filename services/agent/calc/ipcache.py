"""The address table of this node: every known prefix -> identity, and the node of remote pods.

Several sources may know one prefix. In order: a local endpoint, the cluster's address table, an identity made for a
prefix in a policy, the world.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from services.agent.calc.maps import Change, Put, Remove, ipcache_key, ipcache_value
from services.agent.calc.table import Table
from services.model.addresses import IPAddress, IPNetwork, prefix_of
from services.model.identity import Reserved
from services.model.objects import IpEntry, LocalEndpoint

WORLD: dict[IPNetwork, int] = {
    ipaddress.ip_network("0.0.0.0/0"): Reserved.WORLD_IPV4,
    ipaddress.ip_network("::/0"): Reserved.WORLD_IPV6,
}


class Ipcache:
    """Keeps the `ipcache` map's desired content."""

    def __init__(self, node: str, *, native: bool = False) -> None:
        """`native`: the network carries pods' packets; nothing goes by the overlay."""
        self._node, self._native = node, native
        self._table = Table("ipcache")
        self._owned: dict[IPNetwork, int] = {}
        self._rows: dict[IPNetwork, IpEntry] = {}
        """The cluster's address table; others of the calculation look here."""
        self._local: dict[IPNetwork, int] = dict(WORLD)
        self._moved = False
        for prefix in WORLD:
            self._settle(prefix)

    @property
    def desired(self) -> Mapping[bytes, bytes]:
        return self._table.desired

    def in_order(self) -> dict[bytes, bytes]:
        """The same, longer prefixes first: as it is written where nothing is there yet."""
        return dict(sorted(self._table.desired.items(), key=lambda entry: entry[0][0], reverse=True))

    def set_endpoint(self, before: LocalEndpoint | None, after: LocalEndpoint | None) -> None:
        """A local endpoint came, changed or went."""
        touched = set()
        for address in before.addresses if before else ():
            prefix = prefix_of(address)
            self._owned.pop(prefix, None)
            touched.add(prefix)
        for address in after.addresses if after else ():
            assert after is not None
            prefix = prefix_of(address)
            self._owned[prefix] = after.identity
            touched.add(prefix)
        for prefix in touched:
            self._settle(prefix)

    def set_row(self, prefix: IPNetwork, entry: IpEntry | None) -> None:
        """A row of the cluster's address table came, changed or went."""
        if entry is None:
            self._rows.pop(prefix, None)
        else:
            self._rows[prefix] = entry
        self._settle(prefix)

    @property
    def rows(self) -> Mapping[IPNetwork, IpEntry]:
        """The cluster's address table. A view: it follows what is set."""
        return self._rows

    def row(self, prefix: IPNetwork) -> IpEntry | None:
        """The row of the cluster's address table with exactly this prefix."""
        return self._rows.get(prefix)

    def set_prefix(self, prefix: IPNetwork, identity: int | None) -> None:
        """A policy's prefix got or lost an identity of its own."""
        if identity is None:
            self._local.pop(prefix, None)
        else:
            self._local[prefix] = identity
        # Addresses under the prefix change their identity without any of their own rows changing.
        self._moved = True
        self._settle(prefix)

    def outside(self, prefix: IPNetwork) -> int:
        """The identity of an outside prefix: of the longest one around it which policies name, else the world's."""
        around = [known for known in self._local if known.version == prefix.version and _within(prefix, known)]
        return self._local[max(around, key=lambda known: known.prefixlen)]

    def take(self) -> tuple[list[Change], list[Change], bool]:
        """(puts, removals, whether some known address has another identity than before).

        Longer prefixes are there before the shorter ones around them, and go after them: an exception must never,
        between two writes, mean what it is excepted from.
        """
        moved, self._moved = self._moved, False
        puts, removals = self._table.take()
        puts.sort(key=_length, reverse=True)
        removals.sort(key=_length)
        return puts, removals, moved

    def _settle(self, prefix: IPNetwork) -> None:
        key = ipcache_key(prefix)
        identity, tunnel = self._winner(prefix)
        if identity is None:
            self._table.remove(key)
            return
        value = ipcache_value(identity, tunnel, routed=self._native)
        old = self._table.desired.get(key)
        if old is not None and old[:4] != value[:4]:
            self._moved = True
        self._table.put(key, value)

    def _winner(self, prefix: IPNetwork) -> tuple[int | None, IPAddress | None]:
        owned = self._owned.get(prefix)
        if owned is not None:
            return owned, None
        row = self._rows.get(prefix)
        if row is not None:
            return row.identity, None if row.node == self._node else row.tunnel
        return self._local.get(prefix), None


def _length(change: Change) -> int:
    return int.from_bytes(change.key[:4], "little") if isinstance(change, Put | Remove) else 0


def _within(prefix: IPNetwork, around: IPNetwork) -> bool:
    return prefix.subnet_of(around)  # type: ignore[arg-type]
