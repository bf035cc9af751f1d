"""How Services are served: these settings of the agent's configuration, and what the calculation gets of them."""

from __future__ import annotations

import pydantic
from pydantic import Field

from services.agent.calc.services.options import MAGLEV_SIZES, Algorithm, Forwarding, LbOptions
from services.common.config import BaseConfig


class BalancingSettings(BaseConfig):
    """Algorithm, exposure to the outside, tables."""

    lb_algorithm: Algorithm = Field(Algorithm.RANDOM, description="backend of a new connection from outside")
    lb_mode: Forwarding = Field(Forwarding.SNAT, description="how the outside reaches backends of other nodes")
    lb_dsr_dispatch: str = Field(
        "opt",
        description="how DSR carries a Service's address, alike on all nodes: opt (IPv4 option, IPv6 extension header) "
        "or geneve (in UDP, for networks that drop those)",
    )
    lb_dsr_geneve_port: int = Field(6081, description="UDP port of lb_dsr_dispatch: geneve", ge=1, le=65535)
    lb_annotations: bool = Field(False, description="Services may choose algorithm and mode by annotation")
    lb_topology: bool = Field(True, description="follow the hints of EndpointSlices (zones, nodes)")
    lb_external_cluster_ip: bool = Field(False, description="the outside may use cluster addresses of Services")
    lb_source_ranges_all: bool = Field(
        False, description="loadBalancerSourceRanges guard node ports and external addresses, too"
    )
    lb_proxy_name: str = Field(
        "", description="serve Services with this label service-proxy-name; empty = those without the label"
    )
    lb_frontends_max: int = Field(131_072, description="entries of the table of Services' addresses", ge=1024)
    lb_backends_max: int = Field(262_144, description="entries of the table of Services' backends", ge=1024)
    node_port_range: str = Field("30000-32767", description="ports that Services may have on nodes: first-last")
    maglev_size: int = Field(16381, description=f"entries of a look-up table: one of {MAGLEV_SIZES}")
    maglev_seed: int = Field(0x43494C49, description="makes the look-up tables; the same on every node", ge=0)

    @pydantic.field_validator("lb_dsr_dispatch")
    @classmethod
    def _dispatch(cls, text: str) -> str:
        if text == "ipip":
            raise ValueError("ipip has no room for a Service's port; use geneve")
        if text not in ("opt", "geneve"):
            raise ValueError(f"{text!r} is no way to carry an address; use opt or geneve")
        return text

    @property
    def load_balancing(self) -> LbOptions:
        """How Services are served."""
        if self.maglev_size not in MAGLEV_SIZES:
            raise ValueError(f"maglev_size must be one of {', '.join(map(str, MAGLEV_SIZES))}")
        first, _, last = self.node_port_range.partition("-")
        ports = (int(first), int(last)) if first.isdigit() and last.isdigit() else (0, 0)
        if not 0 < ports[0] <= ports[1] < 65536:
            raise ValueError("node_port_range must be first-last, like 30000-32767")
        return LbOptions(
            algorithm=self.lb_algorithm,
            maglev_size=self.maglev_size,
            maglev_seed=self.maglev_seed,
            forwarding=self.lb_mode,
            annotations=self.lb_annotations,
            topology=self.lb_topology,
            external_cluster_ips=self.lb_external_cluster_ip,
            source_ranges_everywhere=self.lb_source_ranges_all,
            node_ports=ports,
            proxy_name=self.lb_proxy_name,
            max_frontends=self.lb_frontends_max,
            max_backends=self.lb_backends_max,
        )
