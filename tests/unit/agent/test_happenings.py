"""Agent events: told from the driver's updates, kept, positioned and followed as Hubble's API says."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import pytest

from services.agent.calc.engine import Engine
from services.agent.calc.maps import MAP_NAMES
from services.agent.datapath.fake_map import FakeMap
from services.agent.datapath.sink import DatapathSink
from services.agent.driver import Driver
from services.agent.happenings import Happenings
from services.agent.host import HostAddresses
from services.agent.sources.base import Mailbox
from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2 as pb
from services.common.pb.observer import observer_pb2
from services.flows.agent_events import AgentEvents
from services.model.identity import Identity, NumericIdentity
from services.model.keys import ObjectKey
from services.model.labels import Labels
from services.model.objects import (
    Deleted,
    EndpointDeleted,
    EndpointUpserted,
    IdentityUpserted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    LocalEndpoint,
    PolicyObject,
    Synced,
    Update,
    Upserted,
)
from services.model.services import Service, ServicePort

WEB = LocalEndpoint(
    7, "default", "web", "c", 3, "cil7", bytes(6), bytes(6), (ipaddress.ip_address("10.1.0.2"),), NumericIdentity(300)
)
LABELS = Labels.parse(["k8s:app=web", "k8s:io.kubernetes.pod.namespace=default"])
POLICY = PolicyObject(
    ObjectKey("NetworkPolicy", "default", "deny"),
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": "default"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]},
    },
    uid="u-1",
)
REMOTE = ipaddress.ip_network("10.2.0.9/32")


def row(identity: int, tunnel: str) -> IpEntry:
    return IpEntry(REMOTE, NumericIdentity(identity), "n2", ipaddress.ip_address(tunnel), "default", "far")


class Node:
    """Engine, maps in memory, and what is told of them."""

    def __init__(self, capacity: int = 64) -> None:
        self.mailbox = Mailbox()
        self.engine = Engine("n1", sources={"objects"})
        self.maps = {name: FakeMap(name) for name in MAP_NAMES}
        self.sink = DatapathSink(self.maps)
        self.driver = Driver(self.mailbox, self.engine, self.sink, HostAddresses("n1", []))
        self.events = AgentEvents("n1", capacity)
        self.refusals: dict[str, str] = {}
        self.happenings = Happenings(self.events, self.engine, self.driver.realised, lambda: self.refusals)
        self.driver.observers = (self.happenings.observe,)
        self.driver.on_applied = self.happenings.applied

    async def give(self, *updates: Update) -> list[pb.AgentEvent]:
        """Apply a batch as the driver does; returns what was told of it."""
        before = self.events.told
        task = asyncio.create_task(self.driver.run())
        try:
            await self.driver.publish(updates)
        finally:
            task.cancel()
        return [each.agent_event for each in await self.read()][before:]

    async def read(self, **request: Any) -> list[observer_pb2.GetAgentEventsResponse]:
        return [each async for each in self.events.stream(observer_pb2.GetAgentEventsRequest(**request))]


@pytest.fixture
async def node() -> Node:
    node = Node()
    await node.give(Synced("objects"))
    return node


async def test_an_endpoints_life(node: Node) -> None:
    created, regenerated = await node.give(
        IdentityUpserted(Identity(NumericIdentity(300), LABELS)), EndpointUpserted(WEB)
    )
    assert created.type == pb.ENDPOINT_CREATED
    assert (created.endpoint_update.id, created.endpoint_update.pod_name) == (7, "web")
    assert list(created.endpoint_update.labels) == list(LABELS.texts())
    assert regenerated.type == pb.ENDPOINT_REGENERATE_SUCCESS
    assert regenerated.endpoint_regenerate.id == 7
    (gone,) = await node.give(EndpointDeleted(7))
    assert (gone.type, gone.endpoint_update.id) == (pb.ENDPOINT_DELETED, 7)
    assert await node.give(EndpointDeleted(7)) == []


async def test_a_policys_life(node: Node) -> None:
    await node.give(IdentityUpserted(Identity(NumericIdentity(300), LABELS)), EndpointUpserted(WEB))
    updated, regenerated = await node.give(Upserted(POLICY))
    assert (updated.type, updated.policy_update.rule_count) == (pb.POLICY_UPDATED, 1)
    assert updated.policy_update.revision == node.engine.revision
    assert "k8s:io.cilium.k8s.policy.name=deny" in updated.policy_update.labels
    assert regenerated.type == pb.ENDPOINT_REGENERATE_SUCCESS
    deleted, again = await node.give(Deleted(POLICY.key))
    assert (deleted.type, deleted.policy_update.rule_count) == (pb.POLICY_DELETED, 0)
    assert again.type == pb.ENDPOINT_REGENERATE_SUCCESS


async def test_what_the_kernel_refuses_is_a_failure_until_it_does_not(node: Node) -> None:
    await node.give(IdentityUpserted(Identity(NumericIdentity(300), LABELS)), EndpointUpserted(WEB))
    node.maps["policy"].broken = True
    node.refusals["policy"] = "no room"
    events = await node.give(Upserted(POLICY))
    assert node.sink.pending
    assert [each.type for each in events] == [pb.POLICY_UPDATED, pb.ENDPOINT_REGENERATE_FAILURE]
    assert events[1].endpoint_regenerate.error == "map policy: no room"
    assert await node.give(Synced("objects")) == []  # told once
    node.maps["policy"].broken = False
    node.refusals.clear()
    node.sink.retry()
    (well,) = await node.give(Synced("objects"))
    assert well.type == pb.ENDPOINT_REGENERATE_SUCCESS


async def test_addresses(node: Node) -> None:
    (first,) = await node.give(IpUpserted(row(300, "172.16.0.2")))
    note = first.ipcache_update
    assert (first.type, note.cidr, note.identity, note.host_ip) == (
        pb.IPCACHE_UPSERTED,
        "10.2.0.9/32",
        300,
        "172.16.0.2",
    )
    assert not note.HasField("old_identity")
    assert await node.give(IpUpserted(row(300, "172.16.0.2"))) == []  # nothing new
    (moved,) = await node.give(IpUpserted(row(301, "172.16.0.3")))
    assert (moved.ipcache_update.old_identity.value, moved.ipcache_update.old_host_ip) == (300, "172.16.0.2")
    (gone,) = await node.give(IpDeleted(REMOTE))
    assert (gone.type, gone.ipcache_update.identity) == (pb.IPCACHE_DELETED, 301)
    assert await node.give(IpDeleted(REMOTE)) == []


async def test_services(node: Node) -> None:
    service = Service(
        "default", "web", cluster_ips=(ipaddress.ip_address("10.96.0.1"),), ports=(ServicePort("", 80, 6, 8080),)
    )
    (known,) = await node.give(Upserted(service))
    note = known.service_upsert
    assert (known.type, note.name, note.type, note.frontend_address.ip, note.frontend_address.port) == (
        pb.SERVICE_UPSERTED,
        "web",
        "ClusterIP",
        "10.96.0.1",
        80,
    )
    assert note.id
    (gone,) = await node.give(Deleted(service.key))
    assert (gone.type, gone.service_delete.id) == (pb.SERVICE_DELETED, note.id)


async def test_which_events_a_request_means() -> None:
    now = 0

    def clock() -> int:
        return now

    events = AgentEvents("n1", capacity=8, now=clock)
    for now in range(1, 11):
        events.tell(lambda number=now: pb.AgentEvent(type=pb.IPCACHE_UPSERTED, ipcache_update={"identity": number}))

    async def numbers(**request: Any) -> list[int]:
        found = events.stream(observer_pb2.GetAgentEventsRequest(**request))
        return [each.agent_event.ipcache_update.identity async for each in found]

    held = [3, 4, 5, 6, 7, 8, 9, 10]
    assert await numbers() == held
    assert await numbers(number=3) == [8, 9, 10]
    assert await numbers(number=3, first=True) == [3, 4, 5]
    assert await numbers(number=99) == held
    assert await numbers(since={"nanos": 9}) == [9, 10]
    assert await numbers(since={"nanos": 5}, number=2) == [5, 6]
    assert await numbers(until={"nanos": 4}) == [3, 4]
    with pytest.raises(Invalid, match="first cannot be specified with follow"):
        await numbers(first=True, follow=True)


async def test_a_follower_gets_what_comes_and_what_it_missed_is_counted() -> None:
    events = AgentEvents("n1", capacity=4)

    def tell(number: int) -> None:
        events.tell(lambda: pb.AgentEvent(type=pb.IPCACHE_UPSERTED, ipcache_update={"identity": number}))

    tell(1)
    stream = events.stream(observer_pb2.GetAgentEventsRequest(follow=True, number=1))
    first = await anext(stream)
    assert first.agent_event.ipcache_update.identity == 1
    assert first.node_name == "n1"
    for number in range(2, 12):
        tell(number)
    assert [(await anext(stream)).agent_event.ipcache_update.identity for _ in range(4)] == [8, 9, 10, 11]
    assert events.missed == 6
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    tell(12)
    assert (await waiting).agent_event.ipcache_update.identity == 12
    await stream.aclose()
