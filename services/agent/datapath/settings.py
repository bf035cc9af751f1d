"""Writing the node's settings into the datapath's `config` map."""

from __future__ import annotations

from dataclasses import dataclass

from services.agent.abi.config import HAIRPIN_IPV4, HAIRPIN_IPV6, DatapathConfig
from services.agent.abi.ct_room import QUEUE_MIN
from services.agent.abi.layout import be16
from services.agent.datapath.maps import PinnedMap
from services.model.addresses import IPAddress, to_bytes
from services.model.identity import Reserved


@dataclass(frozen=True, slots=True)
class Settings:
    """What the datapath has to know of its node."""

    overlay_ifindex: int = 0
    """The VXLAN device; 0 = no overlay."""
    tunnel_port: int = 8472
    dual_stack: bool = True
    """Whether the outside is `world-ipv4` and `world-ipv6`, or just `world`."""
    update_interval_s: float = 10.0
    """Between two reports of a live connection; 0 = none."""
    path_mtu: int = 0
    """The largest packet of a pod that fits into the way to other nodes; 0 = not known."""
    tunnel_address: IPAddress | None = None
    """This node's end of the overlay; None = whatever the routing table says."""
    flags: int = 0
    """`ConfigFlags`: what this node does."""
    nat_ports: tuple[int, int] = (32768, 65535)
    """First and last of the ports that connections get which share the node's address."""

    dsr_port: int = 0
    """UDP port of DSR's Geneve between nodes; 0 = addresses travel as IP options."""

    ct_queue_places: int = QUEUE_MIN
    """Size of map `ct_queue`, a power of two."""
    netns: int = 0
    """Cookie of the node's network namespace: its processes reach node ports at loopback addresses; 0 = not known."""

    def pack(self) -> bytes:
        """`struct datapath_config`."""
        return DatapathConfig(
            update_interval_ns=int(self.update_interval_s * 1e9),
            overlay_ifindex=self.overlay_ifindex,
            world_ipv4=Reserved.WORLD_IPV4 if self.dual_stack else Reserved.WORLD,
            world_ipv6=Reserved.WORLD_IPV6 if self.dual_stack else Reserved.WORLD,
            tunnel_port=be16(self.tunnel_port),
            flags=self.flags,
            path_mtu=self.path_mtu,
            tunnel_address=to_bytes(self.tunnel_address) if self.tunnel_address else bytes(16),
            hairpin_ipv4=HAIRPIN_IPV4,
            hairpin_ipv6=HAIRPIN_IPV6,
            ct_queue_mask=self.ct_queue_places - 1,
            nat_port_min=self.nat_ports[0],
            nat_port_max=self.nat_ports[1],
            netns=self.netns,
            dsr_port=be16(self.dsr_port),
        ).pack()


class NodeSettings:
    """The settings in force. Whoever is responsible for one of them changes it; the others stay."""

    def __init__(self, config_map: PinnedMap, settings: Settings) -> None:
        self._map, self.settings = config_map, settings
        configure(config_map, settings)

    def change(self, settings: Settings) -> None:
        """Take effect at the next packet."""
        if settings != self.settings:
            self.settings = settings
            configure(self._map, settings)


def configure(config_map: PinnedMap, settings: Settings) -> None:
    """Take effect at the next packet."""
    config_map.update(bytes(4), settings.pack())
