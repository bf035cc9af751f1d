"""Addresses for Services of type LoadBalancer out of pools: what the operator and the sandbox's controller share. Pure.

    pools, Services with what they hold ─▶ assign ─▶ addresses or a reason, per Service

The outcome is stable: whoever holds a fitting address keeps it, whatever else comes or goes. Services are served from
the oldest on; several may share an address if all name the same sharing key and none of their ports meet.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.model.addresses import IPAddress
from services.model.keys import ObjectKey

IPS_ANNOTATION = "lbipam.cilium.io/ips"
SHARING_KEY_ANNOTATION = "lbipam.cilium.io/sharing-key"
SHARING_CROSS_ANNOTATION = "lbipam.cilium.io/sharing-cross-namespace"
CLASSES = ("", "io.cilium/bgp-control-plane", "io.cilium/l2-announcer", "io.cilium/node")
"""Values of loadBalancerClass that are ours; other classes are other controllers'."""
_SCAN = 1 << 16
"""Addresses of a range that are looked at for a free one; a bigger range is as good as full then."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Ranges (first, last) of addresses. `selects` says which Services may have them, by labels and namespace."""

    name: str
    ranges: tuple[tuple[IPAddress, IPAddress], ...]
    selects: Callable[[Mapping[str, str], str], bool] = lambda labels, namespace: True
    disabled: bool = False
    """Nothing new is given out; what is held stays."""

    def holds(self, address: IPAddress) -> bool:
        """Whether an address is one of the pool's."""
        return any(
            low.version == address.version and int(low) <= int(address) <= int(high) for low, high in self.ranges
        )

    def addresses(self, version: int) -> Iterator[IPAddress]:
        """From the lowest on."""
        for low, high in self.ranges:
            if low.version == version:
                count = min(int(high) - int(low) + 1, _SCAN)
                yield from (low + offset for offset in range(count))


@dataclass(frozen=True, slots=True)
class Want:
    """A Service that wants addresses: one per IP version in `versions`."""

    key: ObjectKey
    versions: tuple[int, ...]
    ports: frozenset[tuple[int, int]]
    """(port, protocol)"""
    labels: Mapping[str, str] = field(default_factory=dict)
    requested: tuple[IPAddress, ...] = ()
    held: tuple[IPAddress, ...] = ()
    sharing_key: str = ""
    sharing_with: frozenset[str] = frozenset()
    """Other namespaces whose Services may share; '*' = all."""
    created: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a Service gets. `problem` is empty if that is all it wants."""

    addresses: tuple[IPAddress, ...] = ()
    problem: str = ""


Free = dict[tuple[int, tuple[str, ...]], Iterator[IPAddress]]
"""(IP version, pools) -> addresses that may still be free."""


def assign(pools: Sequence[Pool], wants: Iterable[Want]) -> dict[ObjectKey, Assignment]:
    """Addresses for every Service. Depends on the arguments alone, not on their order."""
    ordered = sorted(wants, key=lambda want: (want.created, want.key))
    pools = sorted(pools, key=lambda pool: pool.name)
    taken: dict[IPAddress, list[Want]] = {}
    kept: dict[ObjectKey, list[IPAddress]] = {}
    for want in ordered:
        # What is held is given before anything new is.
        kept[want.key] = [address for address in want.held if _keeps(want, address, pools, taken)]
        for address in kept[want.key]:
            taken.setdefault(address, []).append(want)
    free: Free = {}
    return {want.key: _complete(want, kept[want.key], pools, taken, free) for want in ordered}


def _keeps(want: Want, address: IPAddress, pools: Sequence[Pool], taken: Mapping[IPAddress, list[Want]]) -> bool:
    if want.requested and address not in want.requested:
        return False
    fits = any(pool.holds(address) and pool.selects(want.labels, want.key.namespace) for pool in pools)
    return fits and address.version in want.versions and _shareable(want, taken.get(address, ()))


def _complete(
    want: Want, found: list[IPAddress], pools: Sequence[Pool], taken: dict[IPAddress, list[Want]], free: Free
) -> Assignment:
    problems = []
    for version in want.versions:
        if any(address.version == version for address in found):
            continue
        address, problem = _one(want, version, pools, taken, free)
        if address is None:
            problems.append(problem)
        else:
            found.append(address)
            taken.setdefault(address, []).append(want)
    return Assignment(tuple(sorted(found, key=lambda a: want.versions.index(a.version))), "; ".join(problems))


def _one(
    want: Want, version: int, pools: Sequence[Pool], taken: Mapping[IPAddress, list[Want]], free: Free
) -> tuple[IPAddress | None, str]:
    usable = [p for p in pools if not p.disabled and p.selects(want.labels, want.key.namespace)]
    asked = [address for address in want.requested if address.version == version]
    if asked:
        if not any(pool.holds(asked[0]) for pool in usable):
            return None, f"{asked[0]} is in no pool that the Service may use"
        if not _shareable(want, taken.get(asked[0], ())):
            return None, f"{asked[0]} belongs to {taken[asked[0]][0].key}"
        return asked[0], ""
    if want.sharing_key:
        shared = (a for a, holders in taken.items() if a.version == version and _may_share(want, holders))
        for address in shared:
            if any(pool.holds(address) for pool in usable):
                return address, ""
    # What is taken stays taken while addresses are given out: nobody looks at it twice.
    place = version, tuple(pool.name for pool in usable)
    if place not in free:
        free[place] = (address for pool in usable for address in pool.addresses(version))
    for address in free[place]:
        if address not in taken:
            return address, ""
    return None, f"no pool has a free IPv{version} address for the Service"


def _shareable(want: Want, holders: Sequence[Want]) -> bool:
    return not holders or _may_share(want, holders)


def _may_share(want: Want, holders: Sequence[Want]) -> bool:
    return bool(want.sharing_key) and all(
        other.sharing_key == want.sharing_key
        and not other.ports & want.ports
        and (other.key.namespace == want.key.namespace or (_allows(other, want) and _allows(want, other)))
        for other in holders
    )


def _allows(one: Want, other: Want) -> bool:
    return "*" in one.sharing_with or other.key.namespace in one.sharing_with


def read_ranges(blocks: Iterable[Mapping[str, Any]], *, edges: bool = True) -> tuple[tuple[IPAddress, IPAddress], ...]:
    """A pool's `blocks`: {"cidr": ...} or {"start": ..., "stop": ...}. `edges`: whether the first and
    last address of a cidr may be given out. Raises ValueError naming what is wrong."""
    found = []
    for block in blocks:
        if block.get("cidr"):
            network = ipaddress.ip_network(str(block["cidr"]))
            low, high = network[0], network[-1]
            if not edges and network.num_addresses > 2:
                low, high = low + 1, high - 1
        else:
            low = ipaddress.ip_address(str(block.get("start")))
            high = ipaddress.ip_address(str(block.get("stop") or block.get("start")))
        if low.version != high.version or int(low) > int(high):
            raise ValueError(f"blocks: {low} - {high} is no range; start must not be behind stop")
        found.append((low, high))
    return tuple(found)
