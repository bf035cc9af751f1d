"""The life of an endpoint: ADD twice, failures in the middle, relabelling, restarts, a forgetful identity service."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from services.agent.endpoints.ipam import Ipam
from services.agent.endpoints.leaks import LeakCheck
from services.agent.endpoints.links import Attachment
from services.agent.endpoints.manager import AddRequest, EndpointManager
from services.agent.endpoints.pods import PodDirectory
from services.agent.endpoints.records import EndpointRecord, RecordStore
from services.agent.endpoints.references import IdentityReferences
from services.agent.endpoints.registrar import Registrar
from services.agent.endpoints.relabel import Relabeller
from services.agent.endpoints.rows import NodeIdentity
from services.common.errors import Exhausted, Internal, NotFound, Unavailable
from services.model.identity import Identity
from services.model.label_filter import LabelFilter
from services.model.objects import (
    ContainerPort,
    EndpointDeleted,
    EndpointUpserted,
    IpUpserted,
    Namespace,
    Pod,
    Synced,
    Upserted,
)
from tests.unit.agent.endpoints import fakes

NODE = NodeIdentity("n1", ipaddress.ip_address("172.30.0.1"), 8)
RANGES = (ipaddress.ip_network("10.1.0.0/29"), ipaddress.ip_network("fd00::/64"))


class Bench:
    """A manager with everything around it; `restart` makes a new one on what the old one left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.links, self.identities, self.datapath = fakes.FakeLinks(), fakes.FakeIdentities(), fakes.FakeDatapath()
        self.tasks: list[asyncio.Task[Any]] = []
        self.build()

    def build(self) -> None:
        self.references = IdentityReferences(self.identities)
        self.registrar = Registrar(self.identities, NODE.name)
        self.pods = PodDirectory("default", LabelFilter())
        self.manager = EndpointManager(
            NODE,
            Ipam(RANGES),
            RecordStore(self.folder),
            self.links,
            self.datapath,
            self.pods,
            self.references,
            self.registrar,
            self.datapath.publish,
        )

    def start(self) -> None:
        changed: asyncio.Queue[Identity] = asyncio.Queue()
        relabeller = Relabeller(self.manager, self.pods, self.references)
        self.tasks = [
            asyncio.create_task(relabeller.run()),
            asyncio.create_task(relabeller.renumber(changed)),
            asyncio.create_task(self.registrar.run()),
            asyncio.create_task(self.references.run(changed)),
            asyncio.create_task(LeakCheck(self.references, self.identities, self.registrar, 0.02).run()),
        ]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def restart(self) -> None:
        await self.stop()
        self.build()
        self.datapath.published += await self.manager.restore()
        self.start()

    def pod(self, name: str = "web", app: str = "a", ports: tuple[ContainerPort, ...] = ()) -> None:
        self.manager.observe(Upserted(Pod("default", name, labels={"app": app}, ports=ports)))

    async def add(self, name: str = "web", container: str = "c1") -> EndpointRecord:
        return await self.manager.add(AddRequest(Attachment(container, f"/run/netns/{name}", "eth0"), "default", name))

    def identity_of(self, endpoint_id: int) -> int:
        return self.manager.endpoints[endpoint_id].endpoint.identity


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.start()
    yield bench
    await bench.stop()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - conditions on several objects
            await asyncio.sleep(0.005)


def delete_of(record: EndpointRecord) -> Attachment:
    return Attachment(record.endpoint.container_id, record.endpoint.netns, "eth0")


async def test_add_gives_addresses_identity_programs_and_a_row(bench: Bench) -> None:
    bench.pod(ports=(ContainerPort("http", 80, 6),))
    record = await bench.add()
    endpoint = record.endpoint
    assert [str(address) for address in endpoint.addresses] == ["10.1.0.2", "fd00::2"]
    assert endpoint.ports == (ContainerPort("http", 80, 6),)
    assert bench.datapath.attached == [endpoint.ifindex]
    assert bench.datapath.published[-1] == EndpointUpserted(endpoint)
    assert bench.identities.held == {endpoint.identity}
    rows = bench.identities.rows
    assert {str(prefix): row.identity for prefix, row in rows.items()} == {
        "10.1.0.2/32": endpoint.identity,
        "fd00::2/128": endpoint.identity,
    }
    assert {(str(row.tunnel), row.pod) for row in rows.values()} == {("172.30.0.1", "web")}


async def test_add_twice_is_add_once_and_delete_twice_too(bench: Bench) -> None:
    bench.pod()
    first = await bench.add()
    assert await bench.add() == first
    assert await bench.manager.check(delete_of(first)) == first
    await bench.manager.delete(delete_of(first))
    await bench.manager.delete(delete_of(first))
    assert (bench.links.present, bench.manager.endpoints, bench.identities.held) == ({}, {}, set())
    assert bench.datapath.published[-1] == EndpointDeleted(first.endpoint.id)
    await eventually(lambda: not bench.identities.rows)
    with pytest.raises(NotFound):
        await bench.manager.check(delete_of(first))


async def test_an_add_whose_interface_vanished_is_built_again(bench: Bench) -> None:
    bench.pod()
    first = await bench.add()
    bench.links.present.clear()
    second = await bench.add()
    assert second.endpoint.ifindex != first.endpoint.ifindex
    assert len(bench.manager.endpoints) == 1


async def test_add_waits_for_the_pod_object(bench: Bench) -> None:
    adding = asyncio.create_task(bench.add())
    await asyncio.sleep(0)
    assert not adding.done()
    bench.pod()
    assert (await adding).endpoint.pod == "web"


@pytest.mark.parametrize("where", ["links", "datapath", "identities"])
async def test_a_failed_add_leaves_nothing_behind(bench: Bench, where: str) -> None:
    bench.pod()
    if where == "identities":
        bench.identities.away = True
    elif where == "links":
        bench.links.fail = Internal("netlink: no")
    else:
        bench.datapath.fail = Unavailable("map full")
    with pytest.raises((Internal, Unavailable)):
        await bench.add()
    bench.identities.away = False
    assert (bench.links.present, dict(bench.manager.endpoints), bench.identities.held) == ({}, {}, set())
    assert list(bench.folder.glob("*.json")) == []
    assert [pool.used for pool in bench.manager.ipam.pools] == [0, 0]
    await eventually(lambda: not bench.identities.rows)
    assert (await bench.add()).endpoint.identity in bench.identities.held


async def test_a_range_that_is_used_up_is_said_so_and_addresses_come_back(bench: Bench) -> None:
    records = []
    for number in range(5):
        bench.pod(f"p{number}")
        records.append(await bench.add(f"p{number}", f"c{number}"))
    bench.pod("more")
    with pytest.raises(Exhausted, match=r"no free address in 10\.1\.0\.0/29"):
        await bench.add("more", "c9")
    await bench.manager.delete(delete_of(records[1]))
    assert (await bench.add("more", "c9")).endpoint.addresses[0] == records[1].endpoint.addresses[0]


async def test_equal_labels_share_an_identity_and_the_last_one_gives_it_back(bench: Bench) -> None:
    bench.pod("p1")
    bench.pod("p2")
    one, two = await asyncio.gather(bench.add("p1", "c1"), bench.add("p2", "c2"))
    # The namespace and labels are equal, names make no identity.
    assert one.endpoint.identity == two.endpoint.identity
    await bench.manager.delete(delete_of(one))
    assert bench.identities.held == {one.endpoint.identity}
    await bench.manager.delete(delete_of(two))
    assert bench.identities.held == set()


async def test_a_reference_that_cannot_be_given_back_is_given_back_later(bench: Bench) -> None:
    bench.pod()
    record = await bench.add()
    bench.identities.away = True
    await bench.manager.delete(delete_of(record))
    assert bench.identities.held
    bench.identities.away = False
    await eventually(lambda: not bench.identities.held and not bench.identities.rows)


async def test_new_labels_mean_a_new_identity_and_the_old_one_stays_until_then(bench: Bench) -> None:
    bench.pod()
    record = await bench.add()
    old, number = record.endpoint.identity, record.endpoint.id
    bench.identities.away = True
    bench.pod(app="b")
    await asyncio.sleep(0.02)
    assert bench.identity_of(number) == old
    bench.identities.away = False
    await eventually(lambda: bench.identity_of(number) != old and bench.identities.held == {bench.identity_of(number)})
    new = bench.identity_of(number)
    await eventually(lambda: {row.identity for row in bench.identities.rows.values()} == {new})
    bench.manager.observe(Upserted(Namespace("default", {"kubernetes.io/metadata.name": "default", "team": "x"})))
    await eventually(lambda: bench.identity_of(number) != new)


async def test_after_a_restart_everything_is_as_it_was_without_the_service(bench: Bench) -> None:
    bench.pod()
    record = await bench.add()
    bench.identities.away = True
    bench.links.present["cilstray"] = 99
    bench.datapath.published.clear()
    await bench.restart()
    assert bench.datapath.published[-2:] == [EndpointUpserted(record.endpoint), Synced("endpoints")]
    assert bench.links.present == {record.endpoint.ifname: record.endpoint.ifindex}
    bench.pod("other")
    bench.identities.away = False
    second = await bench.add("other", "c2")
    assert (second.endpoint.id, str(second.endpoint.addresses[0])) == (2, "10.1.0.3")


async def test_after_a_restart_what_is_gone_is_forgotten(bench: Bench) -> None:
    bench.pod()
    record = await bench.add()
    bench.links.present.clear()
    await bench.restart()
    bench.registrar.observe(Synced("identities"))
    assert dict(bench.manager.endpoints) == {}
    await eventually(lambda: not bench.identities.held)
    # The stream still tells the old row: nobody here wants it.
    for row in tuple(bench.identities.rows.values()):
        bench.manager.observe(IpUpserted(row))
    await eventually(lambda: not bench.identities.rows)
    assert record.endpoint.id not in bench.manager.endpoints


async def test_labels_that_changed_during_a_restart_are_noticed(bench: Bench) -> None:
    bench.pod()
    record = await bench.add()
    await bench.restart()
    bench.pod(app="b")
    await eventually(lambda: bench.identity_of(record.endpoint.id) != record.endpoint.identity)


async def test_a_service_that_forgot_us_is_told_again(bench: Bench) -> None:
    bench.pod()
    record = await bench.add()
    bench.identities.forget_everything()
    bench.registrar.lapse()
    bench.references.lapse()
    await eventually(lambda: bench.identity_of(record.endpoint.id) != record.endpoint.identity)
    new = bench.identity_of(record.endpoint.id)
    assert bench.identities.held == {new}
    await eventually(lambda: {row.identity for row in bench.identities.rows.values()} == {new})


async def test_records_survive_and_broken_ones_are_put_aside(bench: Bench, tmp_path: Path) -> None:
    bench.pod(ports=(ContainerPort("x", 1, 17),))
    record = await bench.add()
    (tmp_path / "77.json").write_text("{")
    assert list(RecordStore(tmp_path).load()) == [record]
    assert (tmp_path / "77.broken").exists()
    with contextlib.suppress(FileNotFoundError):
        RecordStore(tmp_path).delete(4711)


async def test_rows_tell_other_nodes_port_names_and_the_workload(bench: Bench) -> None:
    named, bare = ContainerPort("http", 80, 6), ContainerPort("", 81, 6)
    pod = Pod("default", "web", labels={"app": "a"}, ports=(named, bare), workload=("Deployment", "shop"))
    bench.manager.observe(Upserted(pod))
    await bench.add()
    rows = list(bench.identities.rows.values())
    assert [(row.ports, row.workload) for row in rows] == [((named,), ("Deployment", "shop"))] * 2
    await bench.restart()
    assert [(row.ports, row.workload) for row in bench.identities.rows.values()] == [
        ((named,), ("Deployment", "shop"))
    ] * 2, "and nothing is told anew after a restart"


async def test_a_pod_gets_addresses_of_the_pool_that_its_namespace_names(bench: Bench) -> None:
    bench.manager.observe(Upserted(Namespace("default", pool="gold")))
    bench.pod()
    with pytest.raises(Exhausted, match="'gold' has no range on this node yet"):
        await bench.add()
    bench.manager.ipam.set({"": RANGES, "gold": (ipaddress.ip_network("10.9.0.0/28"),)})
    record = await bench.add()
    assert [str(address) for address in record.endpoint.addresses] == ["10.9.0.2"]
