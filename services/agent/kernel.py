"""What the agent has in the kernel: programs, maps, devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from services.agent import node, routing, translation
from services.agent.abi.config import ConfigFlags
from services.agent.config import Config
from services.agent.datapath.loader_client import Loaded
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.settings import NodeSettings
from services.agent.devices import NodeDevices
from services.agent.socket_lb import SocketBalancing


@dataclass(slots=True)
class Kernel:
    """What is loaded, and the maps by name."""

    loaded: Loaded
    programs: node.Programs
    maps: Mapping[str, PinnedMap]
    settings: NodeSettings
    mtu: int
    overlay: int
    """The overlay device; 0 = none."""
    uplinks: Sequence[node.Uplink]
    """The node's devices towards other nodes and the outside, the first one first."""
    devices: NodeDevices
    sockets: SocketBalancing


async def open_kernel(config: Config, stack: AsyncExitStack) -> Kernel:
    """Load the programs (or find them standing), open the maps, make the overlay device."""
    uplinks = await node.find_devices(config)
    node.enable_forwarding()
    loaded = await node.load_programs(config)
    maps = {name: PinnedMap(loaded.map(name)) for name in node.MAPS}
    for opened in maps.values():
        stack.callback(opened.close)
    mtu, indexes = config.path_mtu(uplinks[0].mtu), {device.name: device.ifindex for device in uplinks}
    overlay = await node.ensure_overlay(config, mtu)
    await translation.configure(config, list(indexes.values()), overlay, maps)
    sockets = SocketBalancing(config.socket_lb, config.cgroup_root, loaded)
    flags = await node.pacing(config, uplinks) | (ConfigFlags.SOCKET_LB if sockets.enabled else 0)
    settings = NodeSettings(maps["config"], node.datapath_settings(config, overlay, mtu, maps, flags))
    programs, pod_mtu = node.Programs(loaded, config.xdp), config.pod_mtu(uplinks[0].mtu)
    devices = NodeDevices(indexes, config.addresses, overlay, maps["netdevs"], programs)
    return Kernel(loaded, programs, maps, settings, pod_mtu, overlay, uplinks, devices, sockets)


def devices_of(kernel: Kernel) -> routing.Devices:
    """The node's devices as routing looks at them."""
    names = tuple(device.name for device in kernel.uplinks)
    return routing.Devices(kernel.uplinks[0].ifindex, kernel.overlay, names, kernel.devices.follow)
