"""Our routes as rtnetlink messages (rtnetlink(7), linux/rtnetlink.h), packed and read by hand: there may be one for
every pod of the cluster. Pure.
"""

from __future__ import annotations

import errno
import ipaddress
from dataclasses import dataclass

from services.common import rtnetlink
from services.common.rtnetlink import Message
from services.model.addresses import IPAddress, IPNetwork

PROTOCOL = 99
"""Marks our routes (rtm_protocol), so that a sweep touches no others."""
METRIC = 2042
"""Routes with equal metrics replace one another; anybody else's with a smaller one goes before ours."""
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_ANY_SCOPE = 255
"""RT_SCOPE_NOWHERE: in deletions, whatever the scope."""
_ANY_TYPE = 0
_DESTINATION, _OIF, _GATEWAY, _PRIORITY, _SOURCE = 1, 4, 5, 6, 7
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a range is. Neither `oif` nor `via`: nowhere (the sender is told at once)."""

    oif: int = 0
    via: IPAddress | None = None
    source: IPAddress | None = None
    """What the node's own packets call themselves; None = the kernel chooses."""


def replace(prefix: IPNetwork, route: Route) -> Message:
    """There shall be this route, whatever was there of ours."""
    scope, kind, parts = _SCOPE_UNIVERSE, rtnetlink.UNICAST, []
    if route.source is not None and route.source.version == prefix.version:
        parts.append(rtnetlink.attribute(_SOURCE, route.source.packed))
    if route.via is not None:
        parts.append(rtnetlink.attribute(_GATEWAY, route.via.packed))
    if route.oif:
        parts.append(rtnetlink.u32(_OIF, route.oif))
        if route.via is None and prefix.version == 4:
            scope = _SCOPE_LINK
    elif route.via is None:
        kind = rtnetlink.UNREACHABLE
    body = _fixed(prefix, scope, kind) + b"".join(parts) + rtnetlink.u32(_PRIORITY, METRIC)
    return Message(rtnetlink.NEW_ROUTE, body, rtnetlink.CREATE | rtnetlink.REPLACE)


def remove(prefix: IPNetwork, metric: int = METRIC) -> Message:
    """There shall be none. No scope and no device: whatever the route looks like, the protocol says that it is ours.
    `metric` 0: whatever it has."""
    body = _fixed(prefix, _ANY_SCOPE, _ANY_TYPE) + (rtnetlink.u32(_PRIORITY, metric) if metric else b"")
    return Message(rtnetlink.DELETE_ROUTE, body, fine=_GONE)


def _fixed(prefix: IPNetwork, scope: int, kind: int) -> bytes:
    fixed = rtnetlink.rtmsg(
        prefix.version, prefix.prefixlen, table=rtnetlink.MAIN_TABLE, protocol=PROTOCOL, scope=scope, kind=kind
    )
    return fixed + rtnetlink.attribute(_DESTINATION, prefix.network_address.packed)


def is_ours(body: bytes) -> bool:
    """Whether a route that the kernel tells of is one of ours."""
    return body[5] == PROTOCOL


def read(body: bytes) -> tuple[IPNetwork, Route, int]:
    """A route as the kernel tells it, and its metric. An unreachable one of IPv6 lies on the loopback device."""
    found = rtnetlink.attributes(body, rtnetlink.ROUTE_BYTES)
    raw = found.get(_DESTINATION) or bytes(4 if body[0] == 2 else 16)
    prefix: IPNetwork = ipaddress.ip_network((raw, body[1]))
    metric = int.from_bytes(found.get(_PRIORITY, b""), "little")
    if body[7] == rtnetlink.UNREACHABLE:
        return prefix, Route(), metric
    via, source = (ipaddress.ip_address(found[kind]) if kind in found else None for kind in (_GATEWAY, _SOURCE))
    return prefix, Route(int.from_bytes(found.get(_OIF, b""), "little"), via, source), metric
