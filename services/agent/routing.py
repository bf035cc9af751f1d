"""The node's ways to other nodes' pods, put together: overlay or native routes, and the uplink that both go over.

Node objects, address table ──▶ OverlayRoutes | NativeRoutes ──▶ RouteTable ──▶ kernel
    address events ──▶ AddressKeeper ──▶ mailbox (egress gateways, node ports, who is the host), NodeDevices
link events ──▶ UplinkKeeper ──▶ MTU of pods, overlay, datapath; lost routes are put back
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from services.agent.abi.config import ConfigFlags
from services.agent.calc.engine import Engine
from services.agent.config import Config
from services.agent.datapath.settings import NodeSettings
from services.agent.endpoints.addresses import AddressKeeper, Found
from services.agent.endpoints.bandwidth import BandwidthKeeper
from services.agent.endpoints.links import Links
from services.agent.endpoints.native_routes import NativeRoutes
from services.agent.endpoints.routes import OverlayRoutes, RouteTable
from services.agent.endpoints.uplink import UplinkKeeper
from services.agent.server.state import component
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.objects import LocalEndpoint, Update


@dataclass(frozen=True, slots=True)
class Devices:
    """Interfaces by index: the uplink, and the overlay (0 = none). `names`: all towards other nodes and the outside,
    whose addresses `follow` wants to know."""

    uplink: int
    overlay: int
    names: tuple[str, ...]
    follow: Found


@dataclass(slots=True)
class Routing:
    """What the agent runs, feeds and asks."""

    table: RouteTable
    routes: OverlayRoutes | NativeRoutes
    uplink: UplinkKeeper
    addresses: AddressKeeper
    bandwidth: BandwidthKeeper
    settings: NodeSettings

    def observe(self, update: Update) -> None:
        """Every update passes here; cheap."""
        self.routes.observe(update)
        self.bandwidth.observe(update)

    def jobs(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Tasks, by name."""
        return {
            "routes": self.table.run(),
            "uplink": self.uplink.run(),
            "addresses": self.addresses.run(),
            "bandwidth": self.bandwidth.run(),
        }

    def applied(self, engine: Engine) -> None:
        """The maps have changed: the datapath looks for egress gateways only while there are some."""
        flags = ConfigFlags(self.settings.settings.flags) & ~ConfigFlags.EGRESS_GATEWAY
        if engine.counts()["egress_gateway"]:
            flags |= ConfigFlags.EGRESS_GATEWAY
        self.settings.change(replace(self.settings.settings, flags=flags))

    def checks(self, engine: Engine) -> list[Callable[[], pb.Component]]:
        """What the status tells."""
        return [self.check, self.check_bandwidth, egress_check(engine)]

    def check(self) -> pb.Component:
        """How the routes are."""
        problems = dict(self.table.errors)
        if isinstance(self.routes, NativeRoutes):
            problems |= self.routes.errors
        return component("routing", problems, good=f"{len(self.table.desired)} routes")

    def check_bandwidth(self) -> pb.Component:
        """How limits of pods are."""
        return component("bandwidth", self.bandwidth.errors)


async def build(
    config: Config,
    stack: AsyncExitStack,
    devices: Devices,
    settings: NodeSettings,
    links: Links,
    endpoints: Callable[[], Iterable[LocalEndpoint]],
    tell: Callable[[Update], None],
) -> Routing:
    """Wire it for the configured mode."""
    table = stack.enter_context(RouteTable())
    routes: OverlayRoutes | NativeRoutes
    if config.native_routing:
        routes = NativeRoutes(
            table,
            config.node_name,
            devices.uplink,
            config.addresses,
            config.pod_ranges,
            direct=config.auto_direct_node_routes,
        )
    else:
        routes = OverlayRoutes(table, config.node_name, devices.overlay, config.addresses, config.cluster_ranges)

    def tell_datapath(mtu: int) -> None:
        settings.change(replace(settings.settings, path_mtu=mtu))

    uplink = await stack.enter_async_context(
        UplinkKeeper(devices.uplink, devices.overlay, tell_datapath, links, endpoints, config)
    )
    uplink.changed = table.sweep
    addresses = await stack.enter_async_context(AddressKeeper(config.addresses, devices.names, tell, devices.follow))
    bandwidth = BandwidthKeeper(links, paced=bool(settings.settings.flags & ConfigFlags.PACING))
    return Routing(table, routes, uplink, addresses, bandwidth, settings)


def egress_check(engine: Engine) -> Callable[[], pb.Component]:
    """Whether every egress gateway policy is in force."""

    def check() -> pb.Component:
        found = {f"policy {s.name}": "; ".join(s.problems) for s in engine.egress_gateways() if s.problems}
        return component("egress gateways", found)

    return check
