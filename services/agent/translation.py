"""The node's part in translating packets: its addresses on its devices, and who sees pods' own addresses.

configuration, addresses of the devices ──▶ maps `netdevs` and `no_masquerade`, flags of `config`
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from pyroute2 import AsyncIPRoute

from services.agent.abi.config import ConfigFlags
from services.agent.abi.ipcache import IpcacheKey
from services.agent.abi.nat import NETDEV_NODE, NetdevInfo
from services.agent.config import Config
from services.agent.datapath.reconcile import MapAccess, MapReconciler
from services.common.errors import Exhausted
from services.model.addresses import IPAddress, IPNetwork, prefix_to_key, to_bytes

_GLOBAL = 0
"""RT_SCOPE_UNIVERSE: addresses that others can answer to."""


def flags(config: Config) -> ConfigFlags:
    """What the datapath does at the node's devices."""
    masquerade = ConfigFlags.MASQUERADE if config.masquerade else ConfigFlags(0)
    return masquerade | (ConfigFlags.NORTH_SOUTH if config.north_south else ConfigFlags(0))


async def device_addresses(ifindexes: Sequence[int], own: Sequence[IPAddress]) -> dict[int, list[IPAddress]]:
    """What each device has of addresses that others can answer to; the node's official ones first."""
    found: dict[int, list[IPAddress]] = {ifindex: [] for ifindex in ifindexes}
    async with AsyncIPRoute() as netlink:
        async for entry in await netlink.get_addr():
            if entry["index"] in found and entry["scope"] == _GLOBAL:
                text = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
                found[entry["index"]].append(ipaddress.ip_address(text))
    return {ifindex: sorted(addresses, key=lambda a: a not in own) for ifindex, addresses in found.items()}


def netdev_entries(devices: Mapping[int, Iterable[IPAddress]]) -> dict[bytes, bytes]:
    """Map `netdevs`: the first address of each family."""
    entries = {}
    for ifindex, addresses in devices.items():
        info = NetdevInfo()
        for field, version in (("ipv4", 4), ("ipv6", 6)):
            chosen = next((address for address in addresses if address.version == version), None)
            if chosen is not None:
                setattr(info, field, type(info.ipv4)(*to_bytes(chosen)))
        entries[ifindex.to_bytes(4, "little")] = info.pack()
    return entries


def excluded_entries(networks: Iterable[IPNetwork]) -> dict[bytes, bytes]:
    """Map `no_masquerade`: destinations that see pods' own addresses."""
    entries = {}
    for network in networks:
        length, address = prefix_to_key(network)
        entries[IpcacheKey(prefixlen=length, address=address).pack()] = (1).to_bytes(4, "little")
    return entries


async def configure(config: Config, ifindexes: Sequence[int], overlay: int, maps: Mapping[str, MapAccess]) -> None:
    """Make both maps say what the configuration and the devices say. `overlay`: its interface, where the node speaks
    with its official addresses. Raises `Exhausted` when the maps cannot take it."""
    devices: dict[int, Sequence[IPAddress]] = dict(await device_addresses(ifindexes, config.addresses))
    devices |= {NETDEV_NODE: config.addresses, overlay: config.addresses}
    excluded = (*config.pod_ranges, *config.cluster_ranges, *config.excluded_ranges)
    wanted = {
        "netdevs": netdev_entries(devices),
        "no_masquerade": excluded_entries(excluded),
    }
    for name, entries in wanted.items():
        reconciler = MapReconciler(maps[name])
        reconciler.prune(entries)
        if reconciler.pending:
            raise Exhausted(f"map {name}: {reconciler.last_error}")
