"""Which node has which blocks of pod addresses. Pure.

    pools, nodes with what they hold and want ─▶ assign ─▶ blocks or a reason, per node

The outcome depends on the arguments alone. What a node holds it keeps, unless an older node holds it, too. A block that
was given back is used again as late as possible: rows of the address table may still name its pods.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.model.addresses import IPNetwork

Blocks = Mapping[str, tuple[IPNetwork, ...]]
"""Pool -> blocks, IPv4 first."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Ranges that are given to nodes in blocks. `sizes`: IP version -> prefix length of a block."""

    name: str
    ranges: tuple[IPNetwork, ...]
    sizes: Mapping[int, int]
    created: str = ""

    @property
    def versions(self) -> tuple[int, ...]:
        """IP versions that it has, IPv4 first."""
        return tuple(sorted({network.version for network in self.ranges}))

    def total(self, version: int) -> int:
        """Blocks that fit."""
        return sum(1 << (self.sizes[version] - n.prefixlen) for n in self.ranges if n.version == version)


@dataclass(frozen=True, slots=True)
class Claim:
    """A node: `wants` is how many blocks per IP version of each pool."""

    node: str
    created: str = ""
    holds: Blocks = field(default_factory=dict)
    wants: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Share:
    """What a node gets. `problems` is empty if that is all it wants."""

    blocks: Blocks
    problems: tuple[str, ...] = ()


class _Taken:
    """Ranges in use, of both IP versions, that do not overlap: sorted by their first address."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int, str]]] = {4: [], 6: []}

    def over(self, version: int, low: int, high: int) -> tuple[int, int, str] | None:
        """The highest range in use that has an address of low..high."""
        found = self._ranges[version]
        index = bisect_left(found, (high + 1, 0, ""))
        return found[index - 1] if index and found[index - 1][1] >= low else None

    def holder(self, network: IPNetwork) -> str:
        """Who has some of it; '' = nobody."""
        found = self.over(network.version, int(network[0]), int(network[-1]))
        return found[2] if found else ""

    def add(self, network: IPNetwork, node: str) -> None:
        insort(self._ranges[network.version], (int(network[0]), int(network[-1]), node))

    def last_in(self, network: IPNetwork) -> int:
        """The highest address in use within a range, or the one before it."""
        found = self.over(network.version, int(network[0]), int(network[-1]))
        return min(found[1], int(network[-1])) if found else int(network[0]) - 1


def assign(pools: Iterable[Pool], claims: Iterable[Claim]) -> dict[str, Share]:
    """Blocks for every node. Held ones first, all of them; then what is missing, for the oldest nodes first."""
    by_name = {pool.name: pool for pool in pools}
    ordered = sorted(claims, key=lambda claim: (claim.created, claim.node))
    taken = _Taken()
    kept: dict[str, dict[str, list[IPNetwork]]] = {}
    problems: dict[str, list[str]] = {claim.node: [] for claim in ordered}
    for claim in ordered:
        kept[claim.node] = _kept(claim, by_name, taken, problems[claim.node])
    starts: dict[IPNetwork, int] = {}
    for claim in ordered:
        for name, count in sorted(claim.wants.items()):
            pool = by_name.get(name)
            if pool is None:
                problems[claim.node].append(f"there is no pool {name!r}; create a CiliatePodIPPool of that name")
                continue
            held = kept[claim.node].setdefault(name, [])
            _complete(claim.node, pool, count, held, taken, starts, problems[claim.node])
    return {
        node: Share(
            {name: tuple(sorted(found, key=lambda n: (n.version, n))) for name, found in mine.items() if found},
            tuple(problems[node]),
        )
        for node, mine in kept.items()
    }


def _kept(claim: Claim, pools: Mapping[str, Pool], taken: _Taken, problems: list[str]) -> dict[str, list[IPNetwork]]:
    kept: dict[str, list[IPNetwork]] = {}
    for name, blocks in sorted(claim.holds.items()):
        for block in blocks:
            if other := taken.holder(block):
                problems.append(f"{block} was taken back: node {other} holds it, too, and is older")
                continue
            taken.add(block, claim.node)
            kept.setdefault(name, []).append(block)
            if name not in pools or not any(_within(block, each) for each in pools[name].ranges):
                problems.append(f"{block} is not in pool {name!r} any more; it stays until its node is gone")
    return kept


def _complete(
    node: str,
    pool: Pool,
    count: int,
    held: list[IPNetwork],
    taken: _Taken,
    starts: dict[IPNetwork, int],
    problems: list[str],
) -> None:
    for version in pool.versions:
        missing = count - sum(block.version == version and _in_pool(block, pool) for block in held)
        for _ in range(max(0, missing)):
            block = _free(pool, version, taken, starts)
            if block is None:
                problems.append(
                    f"pool {pool.name!r} has no free IPv{version} block of /{pool.sizes[version]}: "
                    f"all {pool.total(version)} are given out; add a range to it"
                )
                break
            taken.add(block, node)
            held.append(block)


def _free(pool: Pool, version: int, taken: _Taken, starts: dict[IPNetwork, int]) -> IPNetwork | None:
    make = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    for network in pool.ranges:
        if network.version != version:
            continue
        first, last = int(network[0]), int(network[-1])
        width = 1 << (network.max_prefixlen - pool.sizes[version])
        start = starts.setdefault(network, taken.last_in(network) + 1)
        low = _first_free(start, last, width, taken, version)
        low = low if low is not None else _first_free(first, min(last, start - 1), width, taken, version)
        starts[network] = last + 1 if low is None else low + width
        if low is not None:
            return make((low, pool.sizes[version]))
    return None


def _first_free(low: int, last: int, width: int, taken: _Taken, version: int) -> int | None:
    """Where a block of `width` addresses is free within low..last; over what is in use it goes in one step."""
    low = -(-low // width) * width
    while low + width - 1 <= last:
        used = taken.over(version, low, low + width - 1)
        if used is None:
            return low
        low = -(-(used[1] + 1) // width) * width
    return None


def _in_pool(block: IPNetwork, pool: Pool) -> bool:
    return any(_within(block, network) for network in pool.ranges)


def _within(block: IPNetwork, network: IPNetwork) -> bool:
    return block.version == network.version and int(network[0]) <= int(block[0]) <= int(block[-1]) <= int(network[-1])


def overlaps(ranges: Sequence[tuple[str, IPNetwork]]) -> list[tuple[str, str, IPNetwork]]:
    """(owner, other owner, the other's range) of ranges of different owners that share addresses."""
    found, previous = [], dict[int, tuple[int, str]]()
    for owner, network in sorted(ranges, key=lambda each: (each[1].version, int(each[1][0]), int(each[1][-1]))):
        high, before = previous.get(network.version, (-1, ""))
        if int(network[0]) <= high and before != owner:
            found.append((before, owner, network))
        if int(network[-1]) > high:
            previous[network.version] = int(network[-1]), owner
    return found
