"""Nodes, pods and pools -> which blocks each node has, written into CiliateNodes. Pure.

A node has one block per IP version of the default pool from the start. Pods that ask for a pool by annotation, and
pods beyond a block's size, make their node get more: the operator counts them, nobody has to ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from services.common.kube.resources import CILIATE_NODES, POD_POOLS
from services.model.addresses import IPAddress, IPNetwork
from services.model.objects import FINISHED, POOL_ANNOTATION
from services.operator import pools as read
from services.operator.conditions import condition, updated
from services.operator.lost_ranges import implied
from services.operator.ranges import Claim, Pool, Share, assign, overlaps
from services.operator.writes import Write

HEADROOM = 8
"""Addresses that a node should have free: pods start faster than blocks come."""
Document = Mapping[str, Any]


class Plan:
    """What to write, and what to tell about nodes: (node, reason, message)."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.told: list[tuple[str, str, str]] = []


def plan(
    nodes: Sequence[Document],
    claims: Mapping[str, Document],
    pools: Mapping[str, Document],
    default: Pool | None,
    demand: Mapping[str, Mapping[str, int]],
    now: datetime,
    addresses: Mapping[str, Iterable[IPAddress]] | None = None,
) -> Plan:
    """`claims`: CiliateNodes by name; `demand`: node -> pool -> pods; `addresses`: node -> those of its pods, where the
    CiliateNode is lost.
    """
    found = Plan()
    usable = _pools(pools, default)
    names = {node["metadata"]["name"] for node in nodes}
    # What is left of nodes that are gone holds its blocks until it is gone, too.
    orphans = [Claim(name, "", read.held(claim)) for name, claim in claims.items() if name not in names]
    wishes = [_claim(node, claims, usable, default, demand, addresses or {}) for node in nodes]
    shares = assign(usable.values(), [*orphans, *wishes])
    for node in nodes:
        name = node["metadata"]["name"]
        share = shares[name]
        found.writes += _node_writes(node, claims.get(name), share, now)
        found.told += [(name, "PodRangeProblem", problem) for problem in share.problems]
    found.writes += _pool_writes(pools, usable, shares, now)
    return found


def demand_of(pods: Iterable[Document], namespaces: Mapping[str, Document], default: str) -> dict[str, dict[str, int]]:
    """Node -> pool -> pods that need an address of it."""
    counts: dict[str, Counter[str]] = {}
    for pod in pods:
        spec, status = pod.get("spec") or {}, pod.get("status") or {}
        node = spec.get("nodeName")
        if node and not spec.get("hostNetwork") and status.get("phase") not in FINISHED:
            counts.setdefault(node, Counter())[pool_name(pod, namespaces, default)] += 1
    return {node: dict(found) for node, found in counts.items()}


def pool_name(pod: Document, namespaces: Mapping[str, Document], default: str) -> str:
    """The pool that a pod asks for: by itself, else by its namespace."""
    metadata = pod["metadata"]
    namespace = namespaces.get(metadata.get("namespace") or "") or {"metadata": {}}
    for holder in (metadata, namespace["metadata"]):
        asked = (holder.get("annotations") or {}).get(POOL_ANNOTATION)
        if asked:
            return str(asked)
    return default


def _pools(documents: Mapping[str, Document], default: Pool | None) -> dict[str, Pool]:
    """Pools that can be read; an object takes the place of the configured pool of its name."""
    found = {default.name: default} if default else {}
    for name, document in documents.items():
        try:
            found[name] = read.pool_of(document)
        except ValueError:
            found.pop(name, None)  # it says why in its condition
    return found


def _claim(
    node: Document,
    claims: Mapping[str, Document],
    pools: Mapping[str, Pool],
    default: Pool | None,
    demand: Mapping[str, Mapping[str, int]],
    addresses: Mapping[str, Iterable[IPAddress]],
) -> Claim:
    metadata = node["metadata"]
    name = metadata["name"]
    counts = dict(demand.get(name) or {})
    if default:
        counts.setdefault(default.name, 0)
    wants = {}
    for pool, count in counts.items():
        size = read.usable(pools[pool]) if pool in pools else 1
        wants[pool] = max(1, -(-(count + min(HEADROOM, size // 4)) // size))
    holds = read.held(claims[name]) if name in claims else implied(addresses.get(name, ()), pools, wants)
    return Claim(name, str(metadata.get("creationTimestamp") or ""), holds, wants)


def _node_writes(node: Document, claim: Document | None, share: Share, now: datetime) -> list[Write]:
    name = node["metadata"]["name"]
    ipam = read.ipam_document(share.blocks)
    if claim is None:
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"].get("uid", "")}
        document = {
            "apiVersion": CILIATE_NODES.api_version,
            "kind": CILIATE_NODES.kind,
            "metadata": {"name": name, "ownerReferences": [owner]},
            "spec": {"ipam": ipam},
        }
        return [Write("create", CILIATE_NODES, name, document=document)]
    writes = []
    version = {"metadata": {"resourceVersion": claim["metadata"].get("resourceVersion")}}
    if (claim.get("spec") or {}).get("ipam") != ipam:
        return [Write("patch", CILIATE_NODES, name, document=version | {"spec": {"ipam": ipam}})]
    wish = (
        condition("Ready", False, "Problem", "; ".join(share.problems))
        if share.problems
        else condition("Ready", True, "Assigned", "the node has all the blocks that it needs")
    )
    conditions = updated(claim, [wish], now)
    if conditions is not None:
        document = version | {"status": {"conditions": conditions}}
        writes.append(Write("patch", CILIATE_NODES, name, document=document, subresource="status"))
    return writes


def _pool_writes(
    documents: Mapping[str, Document], pools: Mapping[str, Pool], shares: Mapping[str, Share], now: datetime
) -> list[Write]:
    used: Counter[tuple[str, int]] = Counter(
        (name, block.version) for share in shares.values() for name, blocks in share.blocks.items() for block in blocks
    )
    clashes = overlaps([(name, network) for name, pool in sorted(pools.items()) for network in pool.ranges])
    writes = []
    for name, document in sorted(documents.items()):
        wishes = _pool_conditions(name, document, pools, used, clashes)
        status: dict[str, Any] = {}
        conditions = updated(document, wishes, now)
        if conditions is not None:
            status["conditions"] = conditions
        if name in pools:
            blocks = _counts(pools[name], used)
            if (document.get("status") or {}).get("blocks") != blocks:
                status["blocks"] = blocks
        if status:
            version = {"metadata": {"resourceVersion": document["metadata"].get("resourceVersion")}}
            writes.append(Write("patch", POD_POOLS, name, document=version | {"status": status}, subresource="status"))
    return writes


def _counts(pool: Pool, used: Mapping[tuple[str, int], int]) -> dict[str, Any]:
    # A pool of IPv6 can have more blocks than a number of JSON can say exactly.
    return {
        f"ipv{version}": {"total": min(pool.total(version), 1 << 53), "used": used.get((pool.name, version), 0)}
        for version in pool.versions
    }


def _pool_conditions(
    name: str,
    document: Document,
    pools: Mapping[str, Pool],
    used: Mapping[tuple[str, int], int],
    clashes: Sequence[tuple[str, str, IPNetwork]],
) -> list[dict[str, Any]]:
    try:
        pool = read.pool_of(document)
    except ValueError as error:
        return [condition("Valid", False, "Rejected", str(error))]
    full = [version for version in pool.versions if used.get((name, version), 0) >= pool.total(version)]
    others = [f"{network} of {mine} and {other}" for mine, other, network in clashes if name in (mine, other)]
    return [
        condition("Valid", not others, "Overlapping" if others else "Accepted", "; ".join(others)),
        condition(
            "Exhausted",
            bool(full),
            "NoFreeBlock" if full else "BlocksFree",
            f"no free block of {' and '.join(f'IPv{v}' for v in full)}; add a range" if full else "",
        ),
    ]


def host_scope_problems(nodes: Iterable[Document]) -> list[tuple[str, str, str]]:
    """With ranges out of Node objects nothing is assigned here; what is wrong is told: (node, reason, message)."""
    ranges, told = [], []
    for node in nodes:
        name, spec = node["metadata"]["name"], node.get("spec") or {}
        found = read.networks(spec.get("podCIDRs")) or read.networks([spec.get("podCIDR")])
        ranges += [(name, network) for network in found]
        if not found:
            told.append((name, "PodRangeMissing", "spec.podCIDRs is empty; does the controller manager allocate them?"))
    for mine, other, network in overlaps(ranges):
        told.append((other, "PodRangeOverlaps", f"{network} overlaps with a range of node {mine}"))
    return told
