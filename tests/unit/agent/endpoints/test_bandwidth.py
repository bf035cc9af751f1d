"""Which queues pods' interfaces should have, by state: annotations, endpoints, failures."""

from __future__ import annotations

import asyncio
import contextlib

from services.agent.endpoints.bandwidth import BandwidthKeeper
from services.common.errors import Internal
from services.model.bandwidth import EGRESS, INGRESS, Limits
from services.model.identity import NumericIdentity
from services.model.objects import (
    Deleted,
    EndpointDeleted,
    EndpointUpserted,
    LocalEndpoint,
    ObjectKey,
    Pod,
    Update,
    Upserted,
)


class Shapers:
    """Interfaces in a dict; `broken` makes every call fail."""

    def __init__(self) -> None:
        self.limits: dict[int, Limits] = {}
        self.broken = False

    async def shape(self, endpoint: LocalEndpoint, limits: Limits) -> None:
        if self.broken:
            raise Internal("no such interface")
        self.limits[endpoint.id] = limits


def pod(name: str, **annotations: str) -> Update:
    names = {"egress": EGRESS, "ingress": INGRESS}
    return Upserted(Pod("default", name, annotations={names[key]: text for key, text in annotations.items()}))


def endpoint(number: int, name: str) -> Update:
    mac = bytes(6)
    return EndpointUpserted(
        LocalEndpoint(number, "default", name, f"c{number}", 10 + number, "cil", mac, mac, (), NumericIdentity(300))
    )


async def run(keeper: BandwidthKeeper, *updates: Update) -> None:
    for update in updates:
        keeper.observe(update)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await keeper.run()


async def test_limits_follow_annotations_and_endpoints() -> None:
    shapers = Shapers()
    keeper = BandwidthKeeper(shapers, paced=False)
    await run(keeper, pod("a", egress="8M"), pod("b"), endpoint(1, "a"), endpoint(2, "b"))
    assert shapers.limits == {1: Limits(1_000_000, 0), 2: Limits()}  # what an earlier run left goes
    await run(keeper, pod("a", egress="8M", ingress="16M"))
    assert shapers.limits[1] == Limits(1_000_000, 2_000_000)
    await run(keeper, Deleted(ObjectKey("Pod", "default", "a")))
    assert shapers.limits[1] == Limits()
    shapers.limits.clear()
    await run(keeper, EndpointDeleted(1), pod("a", egress="1M"), endpoint(2, "b"))
    assert shapers.limits == {}


async def test_departure_times_leave_what_is_received() -> None:
    shapers = Shapers()
    await run(BandwidthKeeper(shapers, paced=True), pod("a", egress="8M", ingress="16M"), endpoint(1, "a"))
    assert shapers.limits == {1: Limits(0, 2_000_000)}


async def test_what_is_wrong_is_told_and_heals() -> None:
    shapers = Shapers()
    keeper = BandwidthKeeper(shapers, paced=False)
    shapers.broken = True
    await run(keeper, pod("a", egress="fast"), endpoint(1, "a"))
    assert set(keeper.errors) == {"pod default/a", "endpoint 1"}
    shapers.broken = False
    await run(keeper, pod("a", egress="1M"))
    assert keeper.errors == {}
    assert shapers.limits == {1: Limits(125_000, 0)}
