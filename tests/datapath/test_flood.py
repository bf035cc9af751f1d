"""Floods: what has been established survives, others can still connect, and who it was is named."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.agent.abi.conntrack import CtFlags, CtScope
from services.agent.abi.ct_room import CtUsage
from services.agent.abi.events import EVENT_LANE
from services.agent.datapath.gc import ConntrackCollector
from services.agent.datapath.maps import possible_cpus
from services.agent.datapath.room import Room
from services.agent.events.lanes import IN_ORDER
from services.model.verdict import DropReason
from tests.datapath.node import TC_ACT_REDIRECT, TC_ACT_SHOT, Node, inside, u32
from tests.datapath.packets import from_pod, tcp, udp
from tests.datapath.walks import Pods, make_pods
from tests.datapath.wire import WiredNode

pytestmark = pytest.mark.root

TABLE, PLACES = 4096, 1024
CPU = min(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def small(object_cache: Path) -> Iterator[Node]:
    """A table that is soon full: 4096 entries, 1024 places in the queue of this CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    node = Node(object_cache, ct=TABLE)
    try:
        yield node
    finally:
        node.close()
        os.sched_setaffinity(0, before)


@pytest.fixture
def trio(small: Node) -> Pods:
    """Three pods that may talk to one another."""
    small.reset()
    for name in ("ct_usage", "ct_limit"):
        small.map(name).update_batch({u32(i): bytes(small.map(name).value_size) for i in range(4)})
    pods = make_pods(small)
    for pod in pods:
        small.open(pod)
    return pods


class Client:
    """Speaks TCP without sockets: packets of one pod to another, by port."""

    def __init__(self, node: Node, pods: Pods, source: int = 0, target: int = 1) -> None:
        self.node, self.source, self.target = node, pods[source], pods[target]
        self.template = {
            flags: from_pod(self.source, self.target.ipv4, tcp(1, 80, flags)) for flags in ("S", "A", "FA", "R")
        }
        self.answer = {flags: from_pod(self.target, self.source.ipv4, tcp(80, 1, flags)) for flags in ("SA", "A", "FA")}

    def send(self, port: int, flags: str) -> int:
        packet = bytearray(self.template[flags])
        struct.pack_into(">H", packet, 34, port)
        return self.node.run("from_endpoint", bytes(packet), self.source.ifindex).verdict

    def hear(self, port: int, flags: str) -> int:
        packet = bytearray(self.answer[flags])
        struct.pack_into(">H", packet, 36, port)
        return self.node.run("from_endpoint", bytes(packet), self.target.ifindex).verdict

    def connect(self, port: int) -> int:
        """The three packets; the verdict of the first."""
        verdict = self.send(port, "S")
        if verdict == TC_ACT_REDIRECT:
            assert (self.hear(port, "SA"), self.send(port, "A")) == (TC_ACT_REDIRECT, TC_ACT_REDIRECT)
        return verdict

    def close(self, port: int) -> None:
        for flags in ("FA", "A"):
            assert self.send(port, flags) == TC_ACT_REDIRECT
            assert self.hear(port, flags) == TC_ACT_REDIRECT


def usage(node: Node, endpoint: int) -> CtUsage:
    return CtUsage.unpack(node.map("ct_usage").lookup(u32(endpoint)) or b"")


def queue(node: Node) -> list[bytes]:
    return [node.map("ct_queue").lookup_percpu(u32(place))[CPU] for place in range(PLACES)]


def settled(node: Node) -> int:
    return sum(bool(entry.flags & CtFlags.SETTLED) for entry in node.conntrack().values())


def test_a_flood_of_syns_turns_the_queue_and_nothing_else(small: Node, trio: Pods) -> None:
    client, flooder, other = Client(small, trio), Client(small, trio, 2, 1), Client(small, trio, 1, 0)
    for port in range(1000, 1300):
        assert client.connect(port) == TC_ACT_REDIRECT
    assert settled(small) == 600, "one entry at each end"
    for port in range(10_000, 20_000):
        assert flooder.send(port, "S") == TC_ACT_REDIRECT
        if port % 1000 == 0:  # somebody else, in the middle of it
            assert other.connect(port) == TC_ACT_REDIRECT
    assert settled(small) == 620
    assert small.map("ct").count() <= 620 + PLACES
    assert usage(small, trio[2].id).evicted > 9000
    assert usage(small, trio[0].id).evicted == 0
    for port in range(1000, 1300):
        assert client.send(port, "A") == TC_ACT_REDIRECT
        assert client.hear(port, "A") == TC_ACT_REDIRECT
    small.events()


def test_answers_alone_do_not_settle_a_connection(small: Node, trio: Pods) -> None:
    """A server under a flood of forged SYNs answers each of them."""
    flooder = Client(small, trio)
    for port in range(10_000, 13_000):
        flooder.send(port, "S")
        flooder.hear(port, "SA")
    assert settled(small) == 0
    assert small.map("ct").count() <= PLACES


def test_closed_connections_make_room_by_themselves(small: Node, trio: Pods) -> None:
    client = Client(small, trio)
    for port in range(10_000, 12_000):
        client.connect(port)
        client.close(port)
    assert settled(small) == 0
    assert small.map("ct").count() <= PLACES
    assert [usage(small, pod.id).settled for pod in trio] == [0, 0, 0]
    assert [usage(small, pod.id).evicted for pod in trio] == [0, 0, 0], "they were over: nobody was pushed out"


def test_connections_that_end_within_the_node_leave_soon(small: Node, trio: Pods) -> None:
    client = Client(small, trio)
    before = queue(small)
    for port in range(10_000, 10_300):
        client.connect(port)
        client.close(port)
    assert sum(was != now for was, now in zip(before, queue(small), strict=True)) <= 128, "the same places again"
    kept = {int.from_bytes(key.local_port.to_bytes(2, "little"), "big") for key in small.conntrack()}
    assert small.map("ct").count() <= 128 < PLACES
    assert kept - {80} == set(range(10_300 - len(kept) + 1, 10_300)), "the last ones"
    assert len(kept) > 30
    drops = [event for event in small.events() if event["drop_reason"]]
    assert client.hear(10_299, "A") == client.send(10_299, "A") == TC_ACT_REDIRECT, "packets that crossed"
    drops += [event for event in small.events() if event["drop_reason"]]
    assert not drops


def test_a_lane_of_events_that_was_read_to_its_end_starts_again(small: Node, trio: Pods) -> None:
    client = Client(small, trio)
    for port in (20_000, 20_001):
        small.events()
        client.connect(port)
        assert len(small.events()) == 2
    head = np.frombuffer(small.map("events").lookup(u32(2 * CPU)) or b"", EVENT_LANE)[0]
    assert head["taken"] == head["written"] > 4
    assert head["base"] == (head["written"] - 2 if IN_ORDER else 0)


def test_a_port_that_is_used_again_at_once_keeps_its_entry(small: Node, trio: Pods) -> None:
    client = Client(small, trio)
    client.connect(10_000)
    client.close(10_000)
    client.connect(10_000)
    for port in range(11_000, 11_200):
        client.connect(port)
        client.close(port)
    assert settled(small) == 2, "what waited to leave was the one before"
    assert client.send(10_000, "A") == client.hear(10_000, "A") == TC_ACT_REDIRECT


def test_a_long_connection_that_closes_stands_in_the_queue_again(small: Node, trio: Pods) -> None:
    client, flooder = Client(small, trio), Client(small, trio, 2, 1)
    client.connect(1000)
    for port in range(10_000, 12_000):
        flooder.send(port, "S")
    client.close(1000)
    assert any(key.local_port == 0xE803 for key in small.conntrack()), "for stragglers"
    for port in range(12_000, 14_000):
        flooder.send(port, "S")
    assert not any(key.local_port == 0xE803 for key in small.conntrack())


async def test_a_pod_has_its_quota_and_no_more(small: Node, trio: Pods) -> None:
    room = Room(small.map("ct_usage"), small.map("ct_limit"), quota=50)
    collector = ConntrackCollector(small.map("ct"), lambda records: None, room)
    await collector.sweep(0)
    greedy, other = Client(small, trio), Client(small, trio, 2, 1)
    small.events()
    verdicts = [greedy.connect(port) for port in range(1000, 1060)]
    assert verdicts == [TC_ACT_REDIRECT] * 50 + [TC_ACT_SHOT] * 10
    drops = [event for event in small.events() if event["drop_reason"]]
    assert {int(event["drop_reason"]) for event in drops} == {DropReason.CT_QUOTA_EXCEEDED}
    assert usage(small, trio[0].id).refused == 10
    assert all(greedy.send(port, "A") == TC_ACT_REDIRECT for port in range(1000, 1050)), "what it has it keeps"
    # Its peer has as many, at the other end: that one's quota is full, too, and a third pod's is not.
    assert other.connect(2000) == TC_ACT_SHOT
    assert Client(small, trio, 2, 0).connect(2000) == TC_ACT_SHOT
    await collector.sweep(0)
    assert {share.endpoint for share in room.at_quota()} == {trio[0].id, trio[1].id}
    for port in range(1000, 1010):
        greedy.close(port)
    assert [greedy.connect(port) for port in range(3000, 3011)] == [TC_ACT_REDIRECT] * 10 + [TC_ACT_SHOT]
    # What only the collector sees the end of gives room as well.
    result = await collector.sweep(1 << 62)
    assert result.removed == result.entries > 100
    assert greedy.connect(4000) == TC_ACT_REDIRECT


def test_a_full_table_refuses_the_new_and_keeps_the_old(small: Node, trio: Pods) -> None:
    client = Client(small, trio)
    opened = [port for port in range(1000, 3200) if client.connect(port) == TC_ACT_REDIRECT]
    assert len(opened) == TABLE // 2, "two entries each"
    small.events()
    assert client.connect(50_000) == TC_ACT_SHOT
    assert {int(event["drop_reason"]) for event in small.events()} == {DropReason.CT_MAP_INSERTION_FAILED}
    assert all(client.send(port, "A") == TC_ACT_REDIRECT for port in opened)
    # One closes, and its room is the next one's, without anybody collecting.
    client.close(opened[0])
    for port in range(51_000, 51_200):  # the queue has many places that nobody needs any more: some tries pass them
        if client.connect(port) == TC_ACT_REDIRECT:
            break
    else:
        pytest.fail("the room of a closed connection was not found")


def test_answered_datagrams_settle_when_they_go_on(small: Node, trio: Pods) -> None:
    frontend, webapp, _ = trio
    there, back = from_pod(frontend, webapp.ipv4, udp(4000, 53)), from_pod(webapp, frontend.ipv4, udp(53, 4000))
    for packet, pod in ((there, frontend), (back, webapp), (there, frontend)):
        small.run("from_endpoint", packet, pod.ifindex)
    assert settled(small) == 0, "a question and its answer"
    table = small.map("ct")
    for key, entry in small.conntrack().items():
        entry.created_ns -= 3 * 10**9
        table.update(key.pack(), entry.pack())
    small.run("from_endpoint", there, frontend.ifindex)
    assert settled(small) == 2


def test_a_services_choice_lives_as_long_as_its_connection(small: Node, trio: Pods) -> None:
    frontend, webapp, _ = trio
    small.service(41, "10.96.0.10", 80, [(webapp.ipv4, 80)])
    flooder = Client(small, trio, 2, 1)

    def send(flags: str) -> int:
        return small.run(
            "from_endpoint", from_pod(frontend, "10.96.0.10", tcp(4000, 80, flags)), frontend.ifindex
        ).verdict

    def choices() -> list[int]:
        return [
            entry.flags & CtFlags.SETTLED for key, entry in small.conntrack().items() if key.scope == CtScope.SERVICE
        ]

    def flood() -> None:
        for port in range(10_000, 12_000):
            flooder.send(port, "S")

    assert send("S") == TC_ACT_REDIRECT
    small.run("from_endpoint", from_pod(webapp, frontend.ipv4, tcp(80, 4000, "SA")), webapp.ifindex)
    send("A")
    flood()
    assert choices() == [CtFlags.SETTLED]
    assert send("A") == TC_ACT_REDIRECT
    send("FA")
    assert choices() == [0], "the client is done: it may be pushed out"
    assert send("A") == TC_ACT_REDIRECT, "and until then its last packets find their way"
    flood()
    assert choices() == []


# With real sockets.

LONG_LIVED = 2000


@pytest.fixture(scope="module")
def wired(object_cache: Path) -> Iterator[WiredNode]:
    """A client, a server and an attacker on one node, in a table of 16 k entries."""
    node = WiredNode(object_cache, 1, ct=16_384, ct_queue=2048)
    try:
        node.settings(ct_queue_places=2048)
        for number in (1, 2, 3):
            node.open(node.add_pod(number, 1000 + number))
        yield node
    finally:
        node.close()


def serve(listener: socket.socket, served: list[socket.socket]) -> None:
    """Accept for ever, and keep what was accepted."""
    while True:
        try:
            served.append(listener.accept()[0])
        except OSError:
            return


def arrived(served: list[socket.socket], count: int) -> None:
    deadline = time.monotonic() + 5.0
    while len(served) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def flood(node: WiredNode, number: int, target: str, seconds: float) -> int:
    """SYNs from pod `number` to a port where nobody listens and no two alike, as fast as they go; how many."""
    from scapy.all import IP, raw

    syn = bytearray(raw(IP(src=node.pods[number].ipv4, dst=target) / tcp(1, 1)))
    with inside(node.pod_ns(node.pods[number])):
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sent, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(256):
            struct.pack_into(">HH", syn, 20, sent & 0xFFFF, 1 + (sent >> 16))
            sender.sendto(syn, (target, 0))
            sent += 1
    sender.close()
    return sent


async def test_sockets_survive_a_flood_and_the_flooder_is_named(wired: WiredNode) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * LONG_LIVED, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    client, server, attacker = (wired.pods[number] for number in (1, 2, 3))
    room = Room(wired.map("ct_usage"), wired.map("ct_limit"), quota=8192)
    collector = ConntrackCollector(wired.map("ct"), lambda records: None, room)
    served: list[socket.socket] = []
    with inside(wired.pod_ns(server)):
        listener = socket.create_server((server.ipv4, 80), backlog=512)
    threading.Thread(target=serve, args=(listener, served), daemon=True).start()
    opened: list[socket.socket] = []
    try:
        with inside(wired.pod_ns(client)):
            opened.extend(socket.create_connection((server.ipv4, 80), timeout=5.0) for _ in range(LONG_LIVED))
        await collector.sweep(time.monotonic_ns())
        assert collector.entries >= 2 * LONG_LIVED

        flooding = asyncio.create_task(asyncio.to_thread(flood, wired, attacker.id, "10.244.9.9", 3.0))
        await asyncio.sleep(1.0)
        with inside(wired.pod_ns(client)):  # in the midst of it
            opened.extend(socket.create_connection((server.ipv4, 80), timeout=5.0) for _ in range(20))
        sent = await flooding
        assert sent > 4 * 2048 * possible_cpus(), "too slow to be a flood"
        await collector.sweep(time.monotonic_ns())
        shares = {share.endpoint: share for share in room.shares}
        assert shares[attacker.id].evicted > sent // 2
        assert shares[client.id].evicted == shares[server.id].evicted == 0
        assert shares[client.id].settled >= LONG_LIVED
        assert [share.endpoint for share in room.flooding()] == [attacker.id]

        await asyncio.to_thread(arrived, served, len(opened))
        for sock in opened:
            sock.send(b"?")
        for sock in served:
            sock.settimeout(5.0)
            assert sock.recv(1) == b"?"
    finally:
        listener.close()
        for sock in (*opened, *served):
            sock.close()
