"""Addresses for pods from the node's ranges. Pure: who holds what is remembered by the endpoint records.

An address that was given back is used again as late as possible, so that packets and table rows which still mean the
old pod have time to go away.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

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
    """One pool per address family; an endpoint gets one address of each."""

    def __init__(self, ranges: Iterable[IPNetwork]) -> None:
        self.pools = tuple(AddressPool(network) for network in ranges)

    def allocate(self) -> tuple[IPAddress, ...]:
        """One address of each range, or none at all: raises `Exhausted`."""
        taken: list[IPAddress] = []
        try:
            for pool in self.pools:
                taken.append(pool.allocate())  # noqa: PERF401 - what was taken must be known when the next one fails
        except Exhausted:
            self.release(taken)
            raise
        return tuple(taken)

    def hold(self, addresses: Iterable[IPAddress]) -> None:
        """Take given addresses; those of ranges that are the node's no more are left to themselves."""
        for address in addresses:
            for pool in self.pools:
                if address in pool.network:
                    pool.hold(address)

    def release(self, addresses: Iterable[IPAddress]) -> None:
        """Give addresses back."""
        for address in addresses:
            for pool in self.pools:
                if address in pool.network:
                    pool.release(address)


def parse_ranges(texts: Iterable[str], field: str) -> tuple[IPNetwork, ...]:
    """Networks from configuration; raises ValueError naming `field`."""
    found: list[IPNetwork] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error
    return tuple(found)
