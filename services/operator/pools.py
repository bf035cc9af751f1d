"""Documents of pools and nodes -> what `ranges` decides about, and its decisions -> documents. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from services.model.addresses import IPNetwork
from services.operator.ranges import Blocks, Pool

DEFAULT_SIZES = {4: 24, 6: 120}
MAX_BITS = 16
"""A block has at most 2^16 addresses: a node gives out no more of one."""
RESERVED = {4: 3, 6: 2}
"""Addresses of a block that are nobody's: the network's, the node's own, the broadcast."""

Document = Mapping[str, Any]


def pool_of(document: Document) -> Pool:
    """A CiliatePodIPPool; raises ValueError naming the field."""
    spec, metadata = document.get("spec") or {}, document["metadata"]
    ranges: list[IPNetwork] = []
    sizes = dict(DEFAULT_SIZES)
    for version, family in ((4, "ipv4"), (6, "ipv6")):
        part = spec.get(family)
        if not part:
            continue
        sizes[version] = part.get("maskSize", sizes[version])
        for index, text in enumerate(part.get("cidrs") or ()):
            ranges.append(_range(text, version, sizes[version], f"spec.{family}.cidrs[{index}]"))
    if not ranges:
        raise ValueError("spec: a pool needs spec.ipv4.cidrs or spec.ipv6.cidrs")
    return Pool(metadata["name"], tuple(ranges), sizes, str(metadata.get("creationTimestamp") or ""))


def configured_pool(name: str, ranges: Iterable[str], sizes: Mapping[int, int]) -> Pool:
    """A pool out of the configuration; raises ValueError naming the range."""
    found = []
    for text in ranges:
        version = 6 if ":" in text else 4
        found.append(_range(text, version, sizes[version], f"cluster_pool_cidr: {text}"))
    return Pool(name, tuple(found), dict(sizes))


def _range(text: Any, version: int, size: Any, where: str) -> IPNetwork:
    try:
        network = ipaddress.ip_network(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: must be a range such as 10.244.0.0/16, not {text!r}: {error}") from error
    if network.version != version:
        raise ValueError(f"{where}: {network} is not IPv{version}")
    if not isinstance(size, int) or not network.prefixlen <= size <= network.max_prefixlen - 2:
        raise ValueError(
            f"{where}: blocks of /{size} do not fit; choose /{network.prefixlen} to /{network.max_prefixlen - 2}"
        )
    if network.max_prefixlen - size > MAX_BITS:
        raise ValueError(
            f"{where}: blocks of /{size} are too large; choose /{network.max_prefixlen - MAX_BITS} or more"
        )
    return network


def usable(pool: Pool) -> int:
    """Pods that one block of each IP version is enough for."""
    bits = {4: 32, 6: 128}
    return min((1 << (bits[v] - pool.sizes[v])) - RESERVED[v] for v in pool.versions)


def held(document: Document) -> dict[str, tuple[IPNetwork, ...]]:
    """Blocks that a CiliateNode says its node has; what cannot be read is not held."""
    found: dict[str, tuple[IPNetwork, ...]] = {}
    pools = ((document.get("spec") or {}).get("ipam") or {}).get("pools")
    for entry in pools if isinstance(pools, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("pool"), str):
            found[entry["pool"]] = found.get(entry["pool"], ()) + networks(entry.get("cidrs"))
    return found


def networks(texts: Any) -> tuple[IPNetwork, ...]:
    """Those of a list that are ranges."""
    found = []
    for text in texts if isinstance(texts, list) else ():
        try:
            found.append(_network(text))
        except (ValueError, TypeError):
            continue
    return tuple(found)


@lru_cache(1 << 16)
def _network(text: str) -> IPNetwork:
    """The same few blocks are read again for every plan."""
    return ipaddress.ip_network(text)


def ipam_document(blocks: Blocks) -> dict[str, Any]:
    """`spec.ipam` of a CiliateNode."""
    return {"pools": [{"pool": name, "cidrs": [str(n) for n in found]} for name, found in sorted(blocks.items())]}
