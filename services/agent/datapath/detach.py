"""Taking everything of ours off the interfaces and routes of this network namespace, whoever put it there and when."""

from __future__ import annotations

from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from services.agent.datapath import tcx
from services.agent.datapath.attach import EGRESS, ENDPOINT_AHEAD, HANDLE, INGRESS, OVERLAY_AHEAD, netlink

_OURS = frozenset(f"{way}_{where}" for way in ("from", "to") for where in ("endpoint", "overlay", "netdev", "watched"))
"""Names of programs on hooks."""
_AHEAD = frozenset(name for _, name in (*ENDPOINT_AHEAD, *OVERLAY_AHEAD))
_PROTOCOL = 99
"""Marks our routes (rtm_protocol)."""
_INET, _INET6 = 2, 10


async def detach_all() -> list[tuple[str, str]]:
    """Take our programs from every device, whatever it is; (device, program) of each. Others' stay."""
    found = []
    async with netlink() as ipr:
        for link in [each async for each in await ipr.link("dump")]:
            device = str(link.get_attr("IFLA_IFNAME"))
            for hook in tcx.Hook:
                found += [(device, name) for name in tcx.remove(int(link["index"]), hook, _AHEAD)]
            for parent in (INGRESS, EGRESS):
                for priority, name in await _filters(ipr, int(link["index"]), parent):
                    if name in _OURS:
                        place = {"index": int(link["index"]), "handle": HANDLE, "parent": parent, "prio": priority}
                        await ipr.tc("del-filter", "bpf", **place)
                        found.append((device, name))
    return found


async def _filters(ipr: Any, ifindex: int, parent: int) -> list[tuple[int, str]]:
    """(priority, program) of one hook of an interface."""
    try:
        messages = [message async for message in await ipr.get_filters(index=ifindex, parent=parent)]
    except NetlinkError:
        return []  # a device without queueing has none
    found = []
    for message in messages:
        option = message.get_attr("TCA_OPTIONS")
        if option and hasattr(option, "get_attr") and (name := option.get_attr("TCA_BPF_NAME")):
            found.append((int(message["info"]) >> 16, str(name)))
    return found


async def remove_routes() -> list[str]:
    """Take every route that carries our mark; their destinations."""
    found = []
    async with netlink() as ipr:
        for family in (_INET, _INET6):
            for route in [each async for each in await ipr.route("dump", family=family)]:
                if route["proto"] == _PROTOCOL:
                    await ipr.route("del", **_same(route))
                    found.append(f"{route.get_attr('RTA_DST')}/{route['dst_len']}")
    return found


def _same(route: Any) -> dict[str, Any]:
    """What names a route among others."""
    wanted = {
        "family": route["family"],
        "dst": f"{route.get_attr('RTA_DST')}/{route['dst_len']}",
        "table": route.get_attr("RTA_TABLE"),
        "proto": _PROTOCOL,
        "type": route["type"],
        "scope": route["scope"],
    }
    names = {"oif": "RTA_OIF", "gateway": "RTA_GATEWAY", "priority": "RTA_PRIORITY"}
    return wanted | {name: value for name, attr in names.items() if (value := route.get_attr(attr)) is not None}
