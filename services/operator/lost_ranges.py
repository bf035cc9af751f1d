"""Blocks of nodes whose CiliateNode is lost (its definition was deleted, a backup was restored): pods still have them.

Their pods' addresses say which blocks they had. Without that, another node might get them, and addresses would be twice
in the cluster. Pure.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from services.model.addresses import IPAddress, IPNetwork
from services.model.objects import FINISHED
from services.operator.ranges import Pool

SPARE = 1
"""Blocks beyond those that a node wants which are believed to be its own. Addresses that another network gave out may
be all over the pool: of those it gets the fullest blocks only."""


def addresses_of(pods: Iterable[Mapping[str, Any]], nodes: Collection[str]) -> dict[str, list[IPAddress]]:
    """Node -> addresses of its running pods, for these nodes. Pods are as `trim.pod` keeps them."""
    found: dict[str, list[IPAddress]] = {}
    for pod in pods if nodes else ():
        spec, status = pod.get("spec") or {}, pod.get("status") or {}
        if spec.get("nodeName") not in nodes or spec.get("hostNetwork") or status.get("phase") in FINISHED:
            continue
        for text in str(status.get("addresses") or "").split():
            try:
                found.setdefault(spec["nodeName"], []).append(ipaddress.ip_address(text))
            except ValueError:
                continue
    return found


def implied(
    addresses: Iterable[IPAddress], pools: Mapping[str, Pool], wants: Mapping[str, int]
) -> dict[str, tuple[IPNetwork, ...]]:
    """Pool -> blocks that a node must have had, with `wants` blocks of each IP version now."""
    counts: Counter[tuple[str, IPNetwork]] = Counter()
    for address in addresses:
        for name, pool in sorted(pools.items()):
            if any(address in network for network in pool.ranges):
                counts[name, ipaddress.ip_network((address, pool.sizes[address.version]), strict=False)] += 1
                break
    found: dict[str, list[IPNetwork]] = {}
    for (name, block), _ in sorted(counts.items(), key=lambda item: (-item[1], str(item[0]))):
        mine = found.setdefault(name, [])
        if sum(each.version == block.version for each in mine) < wants.get(name, 0) + SPARE:
            mine.append(block)
    return {name: tuple(blocks) for name, blocks in found.items()}
