"""The node's own part of the datapath: its uplink, the overlay device, kernel settings, programs on interfaces."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.agent import translation
from services.agent.abi.config import ConfigFlags
from services.agent.abi.ct_room import queue_places
from services.agent.abi.endpoints import EndpointInfo
from services.agent.calc.maps import MAP_NAMES
from services.agent.config import Config
from services.agent.datapath import attach, loader_client, settings
from services.agent.datapath.advance import Advance
from services.agent.datapath.bpffs import drop_retired
from services.agent.datapath.maps import PinnedMap, possible_cpus
from services.agent.datapath.units import WATCH
from services.agent.datapath.xdp import Mode as XdpMode
from services.agent.datapath.xdp import XdpHooks
from services.agent.events.aggregation import interval_s
from services.common.errors import Denied, NotFound
from services.common.log import get_logger
from services.common.netns import netns_cookie
from services.model.addresses import IPAddress

MAPS = (
    *MAP_NAMES,
    "affinity",
    "sockets",
    "ct",
    "ct_queue",
    "ct_usage",
    "ct_limit",
    "config",
    "events",
    "http_events",
    "http_grammar",
    "http_tables",
    "http_config",
    "http_visible",
    "http_visible_pods",
    "name_events",
    "sock_events",
    "names_config",
    "name_tables",
    "fqdn_names",
    "fqdn_ips",
    "lost",
    "metrics",
    "nat_table",
    "netdevs",
    "no_masquerade",
)
"""What the agent opens: what calc decides about, and what the datapath keeps for itself."""
_SYSCTLS = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface towards the other nodes or the outside."""

    name: str
    ifindex: int
    mtu: int


class Programs:
    """Puts the pinned programs on interfaces."""

    def __init__(self, loaded: loader_client.Loaded, xdp: XdpMode = XdpMode.OFF) -> None:
        self._xdp = XdpHooks(Path(loaded.root), xdp)
        self._progs = Path(loaded.root) / "progs"
        self._maps = Path(loaded.root) / "maps"
        self.advance = Advance(self._progs)

    async def attach(self, ifindexes: Sequence[int]) -> None:
        """Both hooks of endpoints; replaced atomically where they are there already."""
        await attach.attach_endpoints(ifindexes, self._progs)
        self.advance.add(ifindexes)

    async def attach_overlay(self, ifindex: int) -> None:
        """Both hooks of the overlay device."""
        await attach.attach_overlay(ifindex, self._progs)
        self.advance.add([ifindex], attach.OVERLAY_AHEAD)

    async def attach_netdev(self, ifindexes: Collection[int]) -> None:
        """All hooks of the node's devices; devices that were among them earlier lose theirs."""
        for ifindex in ifindexes:
            await attach.attach_netdev(ifindex, self._progs)
        await attach.detach_netdev(keep=ifindexes)
        attached = self._xdp.attach(ifindexes)
        if attached or self._xdp.refused:
            get_logger("node").info("xdp", ifindexes=attached, refused=self._xdp.refused)

    def drop_earlier(self) -> None:
        """Let go of what earlier programs needed: every hook runs the present ones."""
        drop_retired(self._maps)


async def find_uplink(device: str, address: IPAddress) -> Uplink:
    """The named interface, or the one that has the address; raises `NotFound` naming the setting."""
    async with AsyncIPRoute() as netlink:
        if not device:
            device = await _interface_with(netlink, address)
        return await _named(netlink, device, "device")


async def find_devices(config: Config) -> list[Uplink]:
    """All interfaces whose packets we look at, the uplink first; raises `NotFound` naming the setting."""
    uplink = await find_uplink(config.device, config.addresses[0])
    async with AsyncIPRoute() as netlink:
        return [uplink, *[await _named(netlink, name, "devices") for name in config.devices if name != uplink.name]]


async def _named(netlink: AsyncIPRoute, device: str, setting: str) -> Uplink:
    try:
        link = (await netlink.link("get", ifname=device))[0]
    except (NetlinkError, IndexError) as error:
        raise NotFound(f"{setting}: there is no interface {device!r} on this node") from error
    return Uplink(device, int(link["index"]), int(link.get_attr("IFLA_MTU")))


async def _interface_with(netlink: AsyncIPRoute, address: IPAddress) -> str:
    async for entry in await netlink.get_addr():
        if entry.get_attr("IFA_ADDRESS") == str(address) or entry.get_attr("IFA_LOCAL") == str(address):
            link = (await netlink.link("get", index=entry["index"]))[0]
            return str(link.get_attr("IFLA_IFNAME"))
    raise NotFound(f"node_address: no interface of this node has {address}; name one with `device`")


def enable_forwarding() -> None:
    """Let the kernel forward what the programs pass up the stack. Raises `Denied` without root."""
    for name in _SYSCTLS:
        path = Path("/proc/sys") / name
        if not path.exists():
            continue  # a kernel without IPv6
        if path.read_text().strip() == "0":
            try:
                path.write_text("1")
            except OSError as error:
                raise Denied(f"cannot set {name}: {os.strerror(error.errno or 0)}; the agent needs root") from error


async def load_programs(config: Config) -> loader_client.Loaded:
    """Compile or take from the cache, verify, pin; contents of pinned maps are kept."""
    return await loader_client.load(
        loader_client.LoaderConfig(
            root=config.pins,
            cache_dir=config.cache_dir,
            units=[WATCH] if config.observe_only else [],
            max_entries={
                "policy": config.policy_max,
                "ct": config.ct_max,
                "ct_queue": queue_places(config.ct_max, possible_cpus()),
                "ipcache": config.ipcache_max,
                "services": config.lb_frontends_max,
                "backends": config.lb_backends_max,
                "revnat": config.lb_frontends_max,
                "nat_table": config.nat_max,
                "sockets": config.socket_lb_max,
                "fqdn_ips": config.fqdn_max,
                "fqdn_names": config.fqdn_max // 2,
                "tls_servers": config.tls_max,
            },
        )
    )


async def ensure_overlay(config: Config, mtu: int) -> int:
    """The VXLAN device's index; 0 with native routing, which has none and removes what an earlier run left."""
    if config.native_routing:
        await attach.remove_vxlan(config.overlay_device)
        return 0
    return await attach.ensure_vxlan(config.overlay_device, config.tunnel_port, mtu)


async def pacing(config: Config, devices: Collection[Uplink]) -> ConfigFlags:
    """Whether what pods send is limited by departure times. Raises `NotFound` where it was asked for and cannot be."""
    if config.bandwidth == "tbf":
        return ConfigFlags(0)
    found = [await attach.queues_by_departure(d.ifindex, install=config.bandwidth == "edt") for d in devices]
    return ConfigFlags.PACING if all(found) else ConfigFlags(0)


def datapath_settings(
    config: Config, overlay: int, mtu: int, maps: Mapping[str, PinnedMap], found: ConfigFlags
) -> settings.Settings:
    """What the datapath has to know of this node; `found`: what only trying tells."""
    return settings.Settings(
        overlay_ifindex=overlay,
        tunnel_port=config.tunnel_port,
        update_interval_s=interval_s(config.flow_aggregation, config.flow_interval),
        ct_queue_places=maps["ct_queue"].max_entries,
        path_mtu=mtu,
        tunnel_address=config.addresses[0],
        # What an earlier run left stays in force until its maps are compared with what should be.
        flags=found
        | translation.flags(config)
        | (ConfigFlags.HTTP_VISIBLE if config.http_visibility_ports else 0)
        | (ConfigFlags.EGRESS_GATEWAY if maps["egress_gateway"].count() else 0)
        | (ConfigFlags.NATIVE_ROUTING if config.native_routing else 0),
        nat_ports=config.nat_port_range,
        netns=netns_cookie(),
        dsr_port=config.dsr_port,
    )


def last_revision(endpoints: PinnedMap) -> int:
    """The highest policy revision that connections of an earlier run may remember."""
    offset = EndpointInfo.policy_revision.offset
    return max((struct.unpack_from("<I", value, offset)[0] for _, value in endpoints.items()), default=0)
