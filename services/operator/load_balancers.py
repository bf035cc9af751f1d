"""Services of type LoadBalancer and pools -> addresses in the Services' statuses, conditions in both. Pure.

Without any pool nothing is touched: then some other controller gives out addresses, or nobody does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from services.common.kube.resources import LB_POOLS, SERVICES
from services.model.addresses import IPAddress
from services.model.keys import ObjectKey
from services.model.lb_documents import held_by, pool_of, want_of, wants_addresses
from services.model.lb_ipam import Assignment, Pool, Want, assign
from services.operator.conditions import condition, conditions_of, updated
from services.operator.writes import Write

SATISFIED = "cilium.io/IPAMRequestSatisfied"
CONFLICT = "cilium.io/PoolConflict"
TOTAL, AVAILABLE, USED = "cilium.io/IPsTotal", "cilium.io/IPsAvailable", "cilium.io/IPsUsed"

Document = Mapping[str, Any]


def plan(services: Sequence[Document], pools: Sequence[Document], now: datetime) -> list[Write]:
    """What the statuses of Services and pools do not say yet."""
    if not pools:
        return []
    usable, writes = _pools(pools), list[Write]()
    wants, refused = _wants(services)
    given = assign(usable, wants)
    for service in services:
        key = _key(service)
        if key in refused:
            writes += _service_write(service, Assignment((), refused[key]), now)
        elif key in given:
            writes += _service_write(service, given[key], now)
        elif not wants_addresses(service) and any(c.get("type") == SATISFIED for c in conditions_of(service)):
            writes.append(_given_back(service))
    holders = Counter(address for assignment in given.values() for address in set(assignment.addresses))
    return writes + [w for pool in pools for w in _pool_write(pool, usable, holders, now)]


def _key(service: Document) -> ObjectKey:
    metadata = service["metadata"]
    return ObjectKey("Service", metadata.get("namespace") or "default", metadata["name"])


def _pools(documents: Iterable[Document]) -> list[Pool]:
    found = []
    for document in documents:
        try:
            found.append(pool_of(document))
        except ValueError:
            continue  # its condition says why
    return _apart(found)


def _apart(pools: Sequence[Pool]) -> list[Pool]:
    """Of pools that overlap, the later by name gives out nothing new."""
    found: list[Pool] = []
    for pool in sorted(pools, key=lambda each: each.name):
        clash = any(_overlap(pool, other) for other in found if not other.disabled)
        found.append(Pool(pool.name, pool.ranges, pool.selects, disabled=True) if clash else pool)
    return found


def _overlap(one: Pool, other: Pool) -> bool:
    return any(
        a.version == c.version and int(a) <= int(d) and int(c) <= int(b) for a, b in one.ranges for c, d in other.ranges
    )


def _wants(services: Iterable[Document]) -> tuple[list[Want], dict[ObjectKey, str]]:
    wants, refused = [], {}
    for service in services:
        if not wants_addresses(service):
            continue
        try:
            wants.append(want_of(service))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            refused[_key(service)] = str(error)
    return wants, refused


def _service_write(service: Document, given: Assignment, now: datetime) -> list[Write]:
    metadata = service["metadata"]
    reason = "no_pool_or_address" if given.problem else "satisfied"
    wish = condition(SATISFIED, not given.problem, reason, given.problem)
    status: dict[str, Any] = {}
    if set(held_by(service)) != set(given.addresses):
        status["loadBalancer"] = {"ingress": [{"ip": str(a), "ipMode": "VIP"} for a in given.addresses]}
    conditions = updated(service, [wish], now)
    if conditions is not None:
        status["conditions"] = conditions
    return [_status(service, metadata, status)] if status else []


def _given_back(service: Document) -> Write:
    kept = [dict(each) for each in conditions_of(service) if each.get("type") != SATISFIED]
    return _status(service, service["metadata"], {"loadBalancer": {"ingress": None}, "conditions": kept})


def _status(service: Document, metadata: Mapping[str, Any], status: Mapping[str, Any]) -> Write:
    document = {"metadata": {"resourceVersion": metadata.get("resourceVersion")}, "status": dict(status)}
    return Write("patch", SERVICES, metadata["name"], metadata.get("namespace") or "", document, subresource="status")


def _pool_write(
    document: Document, usable: Sequence[Pool], holders: Mapping[IPAddress, int], now: datetime
) -> list[Write]:
    name = document["metadata"]["name"]
    pool = next((each for each in usable if each.name == name), None)
    if pool is None:
        try:
            pool_of(document)
        except ValueError as error:
            wishes = [condition(CONFLICT, True, "invalid", str(error))]
    else:
        others = [o.name for o in usable if o.name < name and not o.disabled and _overlap(pool, o)]
        total = sum(int(high) - int(low) + 1 for low, high in pool.ranges)
        used = sum(1 for address in holders if pool.holds(address))
        wishes = [
            condition(CONFLICT, bool(others), "cidr_overlap" if others else "resolved", ", ".join(others)),
            condition(TOTAL, False, "noreason", str(total)) | {"status": "Unknown"},
            condition(AVAILABLE, False, "noreason", str(total - used)) | {"status": "Unknown"},
            condition(USED, False, "noreason", str(used)) | {"status": "Unknown"},
        ]
    conditions = updated(document, wishes, now)
    if conditions is None:
        return []
    version = {"metadata": {"resourceVersion": document["metadata"].get("resourceVersion")}}
    return [
        Write("patch", LB_POOLS, name, document=version | {"status": {"conditions": conditions}}, subresource="status")
    ]
