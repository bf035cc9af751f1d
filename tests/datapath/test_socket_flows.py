"""Connections that were balanced at the socket, through two policed pods: same verdicts, and flows name the Service."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.agent.abi.config import ConfigFlags
from services.agent.abi.events import EventType
from services.agent.abi.layout import be16
from services.agent.abi.lb import ServiceKey
from services.model.verdict import Direction, DropReason
from tests.datapath.node import HOST, Pod, ip, sh
from tests.datapath.socketed import Cgroup, Servers, Services, call, hooked
from tests.datapath.wire import WiredNode

pytestmark = pytest.mark.root

CLIENT, SERVER, OTHER = 1001, 1002, 1003
VIP = {4: "10.96.0.1", 6: "fd00:96::1"}
SERVICE = {(4, False): 41, (6, False): 61, (4, True): 42, (6, True): 62}
CASES = [pytest.param(v, udp, id=f"ipv{v}-{'udp' if udp else 'tcp'}") for v, udp in SERVICE]


@dataclass
class Rig:
    node: WiredNode
    client: Pod
    server: Pod
    cgroup: Cgroup

    def call(self, version: int, udp: bool, port: int = 80, family: int = 0) -> dict[str, object]:
        target = VIP[version] if not (family == socket.AF_INET6 and version == 4) else f"::ffff:{VIP[4]}"
        return self.cgroup.run(self.node.pod_ns(self.client), lambda: call((target, port), family, udp))


@pytest.fixture(scope="module")
def rig(object_cache: Path) -> Iterator[Rig]:
    node = WiredNode(object_cache, 1)
    servers = None
    try:
        client, server = node.add_pod(1, CLIENT), node.add_pod(2, SERVER)
        node.open(client)
        node.open(server, Direction.EGRESS)
        for protocol in (6, 17):
            node.rule(server, Direction.INGRESS, CLIENT, protocol, 8080, rule_id=77)
        servers = Servers(node.pod_ns(server))
        services = Services(node.map)
        for (version, udp), number in SERVICE.items():
            address = server.ipv4 if version == 4 else server.ipv6
            for port in (8080, 8081):
                servers.add(address, port, udp)
            protocol = 17 if udp else 6
            services.put(number, (VIP[version], 80), [(address, 8080)], protocol)
            services.put(number + 100, (VIP[version], 81), [(address, 8081)], protocol)
        node.settings(flags=ConfigFlags.SOCKET_LB)
        with hooked(node.root, node.name) as (cgroup, _):
            yield Rig(node, client, server, cgroup)
    finally:
        if servers:
            servers.close()
        node.close()


@pytest.mark.parametrize(("version", "udp"), CASES)
@pytest.mark.parametrize("mapped", [False, True], ids=["own", "mapped"])
def test_flows_of_both_ends_name_the_service_and_the_rule(rig: Rig, version: int, udp: bool, mapped: bool) -> None:
    rig.node.events()
    result = rig.call(version, udp, family=socket.AF_INET6 if mapped or version == 6 else socket.AF_INET)
    address = rig.client.ipv4 if version == 4 else rig.client.ipv6
    assert result.get("answer") == f"{rig.server.ipv4 if version == 4 else rig.server.ipv6} {address}"
    events = rig.node.events()
    opened = {int(e["endpoint_id"]): e for e in events[events["type"] == EventType.NEW]}
    assert set(opened) == {rig.client.id, rig.server.id}
    for event in opened.values():
        assert event["service_id"] == SERVICE[version, udp]
        assert event["daddr"].tobytes() == ip(rig.server.ipv4 if version == 4 else rig.server.ipv6)
        assert event["dport"] == 8080
    assert opened[rig.server.id]["rule_id"] == 77


@pytest.mark.parametrize(("version", "udp"), CASES)
def test_flows_of_the_nodes_own_processes_name_the_service(rig: Rig, version: int, udp: bool) -> None:
    own = {4: (rig.node.address, 32), 6: ("fd00:77::1", 128)}[version]
    sh("ip", "addr", "replace", f"{own[0]}/{own[1]}", "dev", "lo", netns=rig.node.name)
    rig.node.ipcache(own[0], HOST)
    rig.node.rule(rig.server, Direction.INGRESS, HOST, 17 if udp else 6, 8080, rule_id=78)
    rig.node.events()
    result = rig.cgroup.run(rig.node.name, lambda: call((VIP[version], 80), udp=udp))
    assert result.get("answer") == f"{rig.server.ipv4 if version == 4 else rig.server.ipv6} {own[0]}"
    events = rig.node.events()
    (opened,) = events[events["type"] == EventType.NEW]
    assert (opened["endpoint_id"], opened["src_identity"], opened["rule_id"]) == (rig.server.id, HOST, 78)
    assert opened["service_id"] == SERVICE[version, udp]


@pytest.mark.parametrize(("version", "udp"), CASES)
def test_policy_is_about_backends_as_before(rig: Rig, version: int, udp: bool) -> None:
    rig.node.events()
    assert rig.call(version, udp, port=81)["error"] == "timed out"
    events = rig.node.events()
    drops = events[events["type"] == EventType.DROP]
    assert len(drops)
    assert set(drops["drop_reason"].tolist()) == {DropReason.POLICY_DENIED}
    assert set(drops["service_id"].tolist()) == {SERVICE[version, udp] + 100}


def test_what_no_hook_saw_is_translated_packet_by_packet(rig: Rig) -> None:
    elsewhere = Cgroup(f"{rig.node.name}x")
    try:
        rig.node.events()
        result = elsewhere.run(rig.node.pod_ns(rig.client), lambda: call((VIP[4], 80)))
    finally:
        elsewhere.close()
    assert result["answer"] == f"{rig.server.ipv4} {rig.client.ipv4}"
    events = rig.node.events()
    assert set(events[events["type"] == EventType.NEW]["service_id"].tolist()) == {SERVICE[4, False]}


def test_a_pod_reaches_itself_through_its_own_service(rig: Rig) -> None:
    def work() -> dict[str, object]:
        return call((VIP[4], 80))

    result = rig.cgroup.run(rig.node.pod_ns(rig.server), work)
    assert result["answer"].split()[0] == rig.server.ipv4
    assert result["peer"] == (VIP[4], 80)


def test_connections_outlive_their_service(rig: Rig) -> None:
    frontend = ServiceKey(address=ip(VIP[4]), port=be16(80), protocol=6).pack()
    kept = rig.node.map("services").lookup(frontend)
    assert kept is not None

    def work() -> tuple[str, str, int | None]:
        with socket.create_connection((VIP[4], 80), timeout=3) as made:
            rig.node.map("services").delete(frontend)
            first = made.recv(100).decode().split()[0]
            peer = made.getpeername()[0]
            # A Service that is gone is an address like others: from here it leads nowhere.
            return first, peer, call((VIP[4], 80))["errno"]

    try:
        first, peer, after = rig.cgroup.run(rig.node.pod_ns(rig.client), work)
    finally:
        rig.node.map("services").update(frontend, kept)
    assert (first, peer) == (rig.server.ipv4, VIP[4])
    assert after in {errno.ENETUNREACH, errno.EHOSTUNREACH}
