"""The driver: nothing before everything is known, a resync first, whoever publishes waits for the maps."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator

import pytest

from services.agent.calc.engine import Engine
from services.agent.calc.maps import MAP_NAMES, ipcache_key, ipcache_value
from services.agent.datapath.fake_map import FakeMap
from services.agent.datapath.sink import DatapathSink
from services.agent.driver import Driver
from services.agent.host import HostAddresses
from services.agent.sources.base import Mailbox
from services.common.errors import Exhausted
from services.model.identity import NumericIdentity, Reserved
from services.model.objects import (
    EndpointUpserted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    LocalEndpoint,
    ObjectKey,
    PolicyObject,
    Synced,
    Update,
    Upserted,
)

OWN = ipaddress.ip_address("172.30.0.1")
OWN_ROW = IpEntry(ipaddress.ip_network("172.30.0.1/32"), NumericIdentity(Reserved.REMOTE_NODE), "n1", OWN)


def endpoint(number: int = 1) -> LocalEndpoint:
    address = ipaddress.ip_address(f"10.1.0.{number + 1}")
    return LocalEndpoint(
        number, "default", "web", "c1", 7, "cilabc", bytes(6), bytes(6), (address,), NumericIdentity(300)
    )


class Bench:
    """A driver on in-memory maps."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.engine = Engine("n1", sources={"objects", "identities"}, addresses=(OWN,))
        self.maps = {name: FakeMap(name) for name in MAPS}
        self.sink = DatapathSink(self.maps)
        self.driver = Driver(self.mailbox, self.engine, self.sink, HostAddresses("n1", [OWN]))
        self.seen: list[Update] = []
        self.driver.observers = (self.seen.append,)
        self.task = asyncio.create_task(self.driver.run())

    def sync(self) -> None:
        for source in ("objects", "identities"):
            self.mailbox.put(Synced(source))


MAPS = MAP_NAMES


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.task.cancel()
    await asyncio.gather(bench.task, return_exceptions=True)


async def test_nothing_is_written_before_every_source_was_complete(bench: Bench) -> None:
    stale = ipcache_key(ipaddress.ip_network("10.9.0.9/32"))
    bench.maps["ipcache"].update_batch({stale: bytes(24)})
    publishing = asyncio.create_task(bench.driver.publish([EndpointUpserted(endpoint())]))
    bench.mailbox.put(Synced("objects"))
    await asyncio.sleep(0.02)
    assert not publishing.done()
    assert dict(bench.maps["ipcache"].items()) == {stale: bytes(24)}
    assert not dict(bench.maps["endpoint_addrs"].items())
    bench.mailbox.put(Synced("identities"))
    await asyncio.wait_for(publishing, 1)
    assert len(dict(bench.maps["endpoint_addrs"].items())) == 1
    # The resync took away what nobody wants.
    assert stale not in dict(bench.maps["ipcache"].items())


async def test_on_sync_comes_once_and_after_the_maps(bench: Bench) -> None:
    seen: list[int] = []

    async def on_sync() -> None:
        seen.append(len(dict(bench.maps["ipcache"].items())))

    bench.driver.on_sync = on_sync
    bench.sync()
    await bench.driver.publish([EndpointUpserted(endpoint())])
    await bench.driver.publish([EndpointUpserted(endpoint(2))])
    assert len(seen) == 1
    assert seen[0] >= 2


async def test_the_nodes_own_addresses_are_the_host_whatever_the_table_says(bench: Bench) -> None:
    bench.sync()
    await bench.driver.publish([IpUpserted(OWN_ROW)])
    entries = dict(bench.maps["ipcache"].items())
    assert entries[ipcache_key(OWN_ROW.prefix)] == ipcache_value(Reserved.HOST, None)
    await bench.driver.publish([IpDeleted(OWN_ROW.prefix)])
    assert ipcache_key(OWN_ROW.prefix) in dict(bench.maps["ipcache"].items())
    assert IpUpserted(OWN_ROW) in bench.seen


async def test_an_endpoint_that_the_maps_refuse_is_an_error_for_who_published_it(bench: Bench) -> None:
    bench.sync()
    await bench.driver.publish([])
    bench.maps["endpoint_addrs"].max_entries = 0
    with pytest.raises(Exhausted, match="endpoint_addrs"):
        await bench.driver.publish([EndpointUpserted(endpoint())])
    bench.maps["endpoint_addrs"].max_entries = 10
    assert bench.sink.retry()


async def test_a_changed_policy_tells_how_long_it_waited_to_be_in_force(bench: Bench) -> None:
    told: list[tuple[int, float]] = []
    bench.driver.on_policies = lambda policies, seconds: told.append((policies, seconds))
    document = {"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    for name in ("a", "b"):
        bench.mailbox.put(Upserted(PolicyObject(ObjectKey("NetworkPolicy", "default", name), document)))
    await asyncio.sleep(0)
    assert told == [], "nothing is in force before everything is known"
    bench.sync()
    await bench.driver.publish([Upserted(PolicyObject(ObjectKey("NetworkPolicy", "default", "c"), document))])
    await bench.driver.publish([EndpointUpserted(endpoint())])
    assert sum(policies for policies, _ in told) == 1
    assert 0 < told[0][1] < 10
