"""Addresses for pods from the node's ranges. Pure: who holds what is remembered by the endpoint records.

An address that was given back is used again as late as possible, so that packets and table rows which still mean the
old pod have time to go away.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from services.common.errors import Conflict, Exhausted
from services.model.addresses import IPAddress, IPNetwork

SCAN_LIMIT = 1 << 16
"""How many addresses of a range are used at most: an IPv6 range has more than anybody can scan."""


class AddressPool:
    """One range. The first address is the node's own, network and broadcast address are nobody's."""

    def __init__(self, network: IPNetwork) -> None:
        self.network = network
        self._held: set[IPAddress] = set()
        reserved = 3 if network.version == 4 and network.num_addresses > 2 else 2
        self.size = max(0, min(network.num_addresses, SCAN_LIMIT) - reserved)
        self._next = 0

    @property
    def used(self) -> int:
        """Addresses that are held."""
        return len(self._held)

    @property
    def held(self) -> frozenset[IPAddress]:
        """Which ones."""
        return frozenset(self._held)

    @property
    def gateway(self) -> IPAddress:
        """The range's first address."""
        return self.network.network_address + 1

    def allocate(self) -> IPAddress:
        """The next free address after the last one given; raises `Exhausted`."""
        if self.used >= self.size:
            raise Exhausted(f"no free address in {self.network}: {self.used} of {self.size} are held; add a pod range")
        while True:
            candidate = self.network.network_address + 2 + self._next
            self._next = (self._next + 1) % self.size
            if candidate not in self._held:
                self._held.add(candidate)
                return candidate

    def hold(self, address: IPAddress) -> None:
        """Take a given address (after a restart); raises `Conflict` when it is held already."""
        if address in self._held:
            raise Conflict(f"address {address} is held by two endpoints")
        self._held.add(address)
        offset = int(address) - int(self.network.network_address) - 2
        if 0 <= offset < self.size:
            self._next = max(self._next, (offset + 1) % self.size)

    def release(self, address: IPAddress) -> None:
        """Give an address back; one that is not held is no error."""
        self._held.discard(address)


class Ipam:
    """Pools by name, '' is the one of pods that name none; an endpoint gets one address per IP version of its pool.

    A pool may have several ranges, and gets more while the agent runs. A range that is no more the node's gives out
    nothing new; what endpoints hold of it is theirs.
    """

    def __init__(
        self, ranges: Iterable[IPNetwork] = (), pools: Mapping[str, Sequence[IPNetwork]] | None = None
    ) -> None:
        self._ranges: dict[IPNetwork, AddressPool] = {}
        self._names: dict[str, tuple[AddressPool, ...]] = {}
        self._loose: set[IPAddress] = set()
        self.set({"": tuple(ranges)})

    @property
    def pools(self) -> tuple[AddressPool, ...]:
        """All ranges that addresses are given out of."""
        return tuple(pool for pools in self._names.values() for pool in pools)

    def set(self, pools: Mapping[str, Sequence[IPNetwork]]) -> None:
        """The node's ranges, by pool; those known already go on with what is held of them."""
        known = self._ranges
        wanted = dict.fromkeys(network for found in pools.values() for network in found)
        self._ranges = {network: known.get(network) or AddressPool(network) for network in wanted}
        self._names = {name: tuple(self._ranges[network] for network in found) for name, found in pools.items()}
        gone = [pool for network, pool in known.items() if network not in wanted]
        held, self._loose = self._loose.union(*(pool.held for pool in gone)), set()
        self.hold(held)

    def allocate(self, pool: str = "") -> tuple[IPAddress, ...]:
        """One address of each IP version, IPv4 first, or none at all: raises `Exhausted`."""
        ranges = self._names.get(pool)
        if not ranges:
            what = f"pool {pool!r} has no range on this node yet" if pool else "this node has no pod range yet"
            raise Exhausted(f"{what}; the operator gives it one: see its CiliateNode")
        taken: list[IPAddress] = []
        try:
            for version in sorted({each.network.version for each in ranges}):
                family = [each for each in ranges if each.network.version == version]
                roomy = next((each for each in family if each.used < each.size), family[-1])
                taken.append(roomy.allocate())
        except Exhausted:
            self.release(taken)
            raise
        return tuple(taken)

    def exhausted(self) -> str:
        """Why a pod that names no pool would get no address, in words; '' while it would."""
        ranges = self._names.get("", ())
        for version in sorted({each.network.version for each in ranges}):
            family = [each for each in ranges if each.network.version == version]
            if all(each.used >= each.size for each in family):
                return f"no free address in {', '.join(str(each.network) for each in family)}"
        return "" if ranges else "this node has no pod range yet"

    def hold(self, addresses: Iterable[IPAddress]) -> None:
        """Take given addresses; those of ranges that are not the node's (yet) are remembered."""
        for address in addresses:
            pool = self._of(address)
            if pool:
                pool.hold(address)
            else:
                self._loose.add(address)

    def release(self, addresses: Iterable[IPAddress]) -> None:
        """Give addresses back."""
        for address in addresses:
            self._loose.discard(address)
            if pool := self._of(address):
                pool.release(address)

    def _of(self, address: IPAddress) -> AddressPool | None:
        return next((pool for network, pool in self._ranges.items() if address in network), None)


def parse_ranges(texts: Iterable[str], field: str) -> tuple[IPNetwork, ...]:
    """Networks from configuration; raises ValueError naming `field`."""
    found: list[IPNetwork] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error
    return tuple(found)
