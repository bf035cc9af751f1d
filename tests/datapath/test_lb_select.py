"""Choosing a backend: the compiled chooser does what the readable one says; affinity lasts as long as it should."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.all import IP, TCP, IPv6

from services.agent.abi.layout import be16
from services.agent.abi.lb import BackendSlotKey, MaglevKey, ServiceFlags
from services.agent.calc.services import maglev
from services.agent.calc.services.options import MAGLEV_SIZES
from services.agent.datapath.fake_lb import Client, ReferenceBalancer
from services.model.addresses import from_bytes
from tests.datapath.node import Node, Pod, ip, u32
from tests.datapath.packets import parse, tcp
from tests.datapath.walks import FAMILIES, Pods, at, make_pods, send

pytestmark = pytest.mark.root

VIP = {False: "10.96.0.10", True: "fd00:10:96::10"}
REMOTE = "10.244.9.{}"


def serve(
    node: Node, v6: bool, hosts: list[int], flags: int, *, size: int = 251, seed: int = 7, timeout: int = 60
) -> None:
    """A Service with backends elsewhere, its look-up table and its places."""
    prefix = "fd00:10:244:9::{:x}" if v6 else REMOTE
    backends = [(prefix.format(host), 8080) for host in hosts]
    for name in ("backend_slots", "maglev"):
        node.map(name).delete_batch([key for key, _ in node.map(name).items()])
    node.service(41, VIP[v6], 80, backends, flags=flags, maglev_size=size, maglev_seed=seed, affinity_timeout=timeout)
    for slot, (address, port) in enumerate(backends):
        place = BackendSlotKey(address=ip(address), service_id=41, port=be16(port))
        node.map("backend_slots").update(place.pack(), u32(slot))
    names = sorted((ip(address) + port.to_bytes(2, "big"), slot) for slot, (address, port) in enumerate(backends))
    table = maglev.fill([name for name, _ in names], size, seed)
    for piece, raw in enumerate(maglev.pieces(table, [slot for _, slot in names])):
        node.map("maglev").update(MaglevKey(service_id=41, piece=piece).pack(), raw)


def reached(node: Node, pod: Pod, v6: bool, port: int) -> str:
    packet = parse(send(node, pod, VIP[v6], tcp(port, 80)).packet)
    assert packet[TCP].dport == 8080
    return str(packet[IPv6 if v6 else IP].dst)


def prepare(node: Node) -> Pods:
    pods = make_pods(node)
    node.settings(overlay_ifindex=node.ifindexes[3])
    for prefix in ("10.244.9.0/24", "fd00:10:244:9::/64"):
        node.ipcache(prefix, 1009, "192.168.77.2")
    return pods


def reference(node: Node, **more: Any) -> ReferenceBalancer:
    names = ("services", "backends", "backend_slots", "maglev", "source_ranges")
    return ReferenceBalancer({name: dict(node.map(name).items()) for name in names}, **more)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    v6=st.booleans(),
    hosts=st.lists(st.integers(1, 250), unique=True, min_size=1, max_size=20),
    size=st.sampled_from([*MAGLEV_SIZES[:3], 16381]),
    seed=st.integers(0, (1 << 32) - 1),
    ports=st.lists(st.integers(1024, 65535), unique=True, min_size=1, max_size=6),
    affinity=st.booleans(),
)
def test_look_up_tables(
    module_node: Node, v6: bool, hosts: list[int], size: int, seed: int, ports: list[int], affinity: bool
) -> None:
    module_node.reset()
    pods = prepare(module_node)
    flags = ServiceFlags.MAGLEV | (ServiceFlags.AFFINITY if affinity else ServiceFlags(0))
    serve(module_node, v6, hosts, flags, size=size, seed=seed)
    balancer = reference(module_node)
    found = balancer.find(ip(VIP[v6]), 80, 6, 0)
    assert found is not None
    for pod in pods:
        for port in ports:
            wanted = balancer.select(*found, Client(ip(at(pod, v6)), port))
            assert wanted is not None
            assert reached(module_node, pod, v6, port) == str(from_bytes(wanted[0]))


@FAMILIES
def test_a_client_keeps_its_backend(node: Node, v6: bool) -> None:
    frontend, webapp, _ = prepare(node)
    hosts = list(range(1, 41))
    serve(node, v6, hosts, ServiceFlags.AFFINITY)
    one, two = reached(node, frontend, v6, 4000), reached(node, webapp, v6, 4000)
    assert {reached(node, frontend, v6, port) for port in range(4001, 4030)} == {one}
    assert {reached(node, webapp, v6, port) for port in range(4001, 4030)} == {two}
    # Others go, and it moves to another slot: still the same for those who had it.
    kept = int(one.rpartition("." if not v6 else ":")[2], 10 if not v6 else 16)
    serve(node, v6, [kept, *(host for host in hosts if host > 20 and host != kept)], ServiceFlags.AFFINITY)
    assert reached(node, frontend, v6, 5000) == one
    # It goes itself: the client gets another one, and keeps that.
    serve(node, v6, [host for host in hosts if host != kept], ServiceFlags.AFFINITY)
    node.map("backend_slots").delete(BackendSlotKey(address=ip(one), service_id=41, port=be16(8080)).pack())
    other = reached(node, frontend, v6, 5001)
    assert other != one
    assert {reached(node, frontend, v6, port) for port in range(5002, 5020)} == {other}


def test_affinity_ends_after_its_time_and_every_request_renews_it(node: Node) -> None:
    frontend, _, _ = prepare(node)
    serve(node, False, list(range(1, 201)), ServiceFlags.AFFINITY, timeout=1)
    first = reached(node, frontend, False, 4000)
    for port in (4001, 4002, 4003):
        time.sleep(0.5)
        assert reached(node, frontend, False, port) == first
    time.sleep(1.1)
    # One of 200 at random; by chance it may be the same again, but not twice.
    again = reached(node, frontend, False, 4004)
    time.sleep(1.1 if again == first else 0)
    assert {again, reached(node, frontend, False, 4005)} != {first}
