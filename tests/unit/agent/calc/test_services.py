"""Services, row by row of policy-semantics 8: where they are reached, by whom, with whom, and what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.agent.abi import lb
from services.agent.abi.lb import ServiceFlags
from services.agent.calc.services import entries
from services.agent.calc.services.options import Algorithm, Forwarding, NodeFacts
from services.model.objects import HostPort, KubeNode, Pod
from services.model.services import HEADLESS_LABEL, PROXY_NAME_LABEL, ServicePort
from tests.unit.agent.calc.lb_world import CLUSTER, HTTP, LOCAL, A, N, World, endpoint, service, slice_of

HERE, THERE = endpoint("10.1.0.1"), endpoint("10.2.0.1", "node2")
VIP, NODE4, NODE6, LB, EXT = "10.96.0.1", "192.168.0.1", "fd00:192::1", "203.0.113.9", "198.51.100.7"
CLUSTER_IP = {(VIP, 80, 0), (VIP, 0, 0)}
NODE_PORT = {(NODE4, 30080, 0), (NODE4, 30080, 1), ("0.0.0.0", 30080, 0)}


def both(address: str) -> set[tuple[str, int, int]]:
    return {(address, port, scope) for port in (0, 80) for scope in (0, 1)}


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("ClusterIP", {}, CLUSTER_IP),
        ("ClusterIP", {"cluster_ips": ()}, set()),
        ("ExternalName", {"external_ips": (EXT,)}, set()),
        ("NodePort", {}, CLUSTER_IP | NODE_PORT),
        ("LoadBalancer", {"ingress_ips": (LB,)}, CLUSTER_IP | NODE_PORT | both(LB)),
        ("LoadBalancer", {"ingress_ips": (LB,), "ports": (replace(HTTP, node_port=0),)}, CLUSTER_IP | both(LB)),
        ("ClusterIP", {"external_ips": (EXT,)}, CLUSTER_IP | both(EXT)),
        # A node's own address is the node's on other ports.
        ("LoadBalancer", {"ingress_ips": (NODE4,)}, CLUSTER_IP | NODE_PORT | {(NODE4, 80, 0), (NODE4, 80, 1)}),
        ("ClusterIP", {"external_ips": (NODE4,)}, CLUSTER_IP | {(NODE4, 80, 0), (NODE4, 80, 1)}),
        ("ClusterIP", {"labels": {HEADLESS_LABEL: ""}}, set()),
        ("ClusterIP", {"labels": {PROXY_NAME_LABEL: "other"}}, set()),
    ],
)
def test_types_and_their_frontends(kind: str, more: dict[str, Any], expected: set[Any]) -> None:
    world = World(service(type=kind, **more), slice_of(HERE))
    assert world.frontends() == expected
    assert not world.problems()


def test_the_proxy_that_is_named_serves() -> None:
    named = service(labels={PROXY_NAME_LABEL: "ciliate"})
    assert World(named, proxy_name="ciliate").frontends() == CLUSTER_IP
    assert not World(service(), proxy_name="ciliate").frontends()


def test_cluster_addresses_are_for_the_outside_only_where_that_is_allowed() -> None:
    assert World(service(), slice_of(HERE), external_cluster_ips=True).reached(VIP, 80, 1) == ["10.1.0.1:8080"]


def test_both_families() -> None:
    six = endpoint("fd00::1")
    world = World(
        service(type="NodePort", cluster_ips=(VIP, "fd00::96")),
        slice_of(HERE),
        slice_of(six, name="web-6", family=6),
    )
    assert world.reached(VIP, 80) == world.reached(NODE4, 30080, 1) == ["10.1.0.1:8080"]
    assert world.reached("fd00::96", 80) == world.reached(NODE6, 30080, 1) == ["fd00::1:8080"]


@pytest.mark.parametrize(
    ("internal", "external", "outside", "inside"),
    [
        (CLUSTER, CLUSTER, 2, 2),
        (CLUSTER, LOCAL, 1, 2),
        (LOCAL, CLUSTER, 2, 1),
        (LOCAL, LOCAL, 1, 1),
    ],
)
def test_traffic_policies(internal: Any, external: Any, outside: int, inside: int) -> None:
    web = service(type="LoadBalancer", ingress_ips=(LB,), internal_policy=internal, external_policy=external)
    world = World(web, slice_of(HERE, THERE))
    assert len(world.reached(VIP, 80) or ()) == inside
    for address, port in ((NODE4, 30080), (LB, 80)):
        assert len(world.reached(address, port, 1) or ()) == outside
        assert bool(world.flags(address, port, 1) & ServiceFlags.LOCAL) == (external is LOCAL)
        assert len(world.reached(address, port, 0) or ()) == 2, "from inside, an outside address is the whole cluster"


def test_nobody_is_refused_and_nobody_here_is_dropped() -> None:
    web = service(type="NodePort", external_policy=LOCAL, internal_policy=LOCAL)
    world = World(web, slice_of(THERE))
    assert world.reached(NODE4, 30080, 1) == world.reached(VIP, 80) == []
    assert not world.flags(NODE4, 30080, 1) & ServiceFlags.REFUSE, "another node may serve"
    world.tell(slice_of(endpoint("10.2.0.1", "node2", "maintenance")))
    assert world.flags(NODE4, 30080, 1) & ServiceFlags.REFUSE
    assert world.flags(NODE4, 30080, 0) & ServiceFlags.REFUSE


STATES = ("active", "terminating", "leaving", "maintenance")


@pytest.mark.parametrize(
    ("here", "there", "cluster", "local"),
    [
        (here, there, cluster, local)
        for here in STATES
        for there in STATES
        for cluster in [
            [n for n, s in (("10.1", here), ("10.2", there)) if s == "active"]
            or [n for n, s in (("10.1", here), ("10.2", there)) if s == "terminating"]
        ]
        for local in [["10.1"] if here in ("active", "terminating") else []]
    ],
)
def test_conditions_and_fallback(here: str, there: str, cluster: list[str], local: list[str]) -> None:
    world = World(
        service(type="NodePort", external_policy=LOCAL),
        slice_of(endpoint("10.1.0.1", "node1", here), endpoint("10.2.0.1", "node2", there)),
    )
    assert world.reached(VIP, 80) == [f"{net}.0.1:8080" for net in cluster]
    assert world.reached(NODE4, 30080, 1) == [f"{net}.0.1:8080" for net in local]
    assert len(world.services.live_backends()) == 2, "connections to either stay"


def hinted(address: str, *zones: str, nodes: tuple[str, ...] = (), state: str = "active", node: str = "x") -> Any:
    return endpoint(address, node, state, zone_hints=zones, node_hints=nodes)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((hinted("10.1.0.1", "a"), hinted("10.1.0.2", "b")), ["10.1.0.1"]),
        ((hinted("10.1.0.1", "a"), hinted("10.1.0.2", "b", "a")), ["10.1.0.1", "10.1.0.2"]),
        ((hinted("10.1.0.1", "a"), hinted("10.1.0.2")), ["10.1.0.1", "10.1.0.2"]),
        ((hinted("10.1.0.1", "b"), hinted("10.1.0.2", "c")), ["10.1.0.1", "10.1.0.2"]),
        ((hinted("10.1.0.1", "a"), hinted("10.1.0.2", state="maintenance")), ["10.1.0.1"]),
        ((hinted("10.1.0.1", "a", nodes=("node1",)), hinted("10.1.0.2", "a", nodes=("n2",))), ["10.1.0.1"]),
        ((hinted("10.1.0.1", "b", nodes=("n3",)), hinted("10.1.0.2", "a", nodes=("n2",))), ["10.1.0.2"]),
        (
            (hinted("10.1.0.1", "a", state="terminating"), hinted("10.1.0.2", state="terminating")),
            ["10.1.0.1", "10.1.0.2"],
        ),
    ],
)
def test_hints(found: tuple[Any, ...], expected: list[str]) -> None:
    assert World(service(), slice_of(*found)).reached(VIP, 80) == [f"{address}:8080" for address in expected]
    everybody = World(service(), slice_of(*found), topology=False).reached(VIP, 80) or []
    assert set(everybody) >= {f"{address}:8080" for address in expected}


def test_the_node_s_zone_comes_from_its_object_and_may_change() -> None:
    world = World(service(), slice_of(hinted("10.1.0.1", "a"), hinted("10.1.0.2", "b")), node=NodeFacts("node1"))
    assert len(world.reached(VIP, 80) or ()) == 2
    world.tell(KubeNode("node1", {"topology.kubernetes.io/zone": "b"}))
    assert world.reached(VIP, 80) == ["10.1.0.2:8080"]


def test_local_sets_ignore_hints() -> None:
    web = service(type="NodePort", external_policy=LOCAL)
    world = World(web, slice_of(hinted("10.1.0.1", "b", node="node1"), hinted("10.1.0.2", "a", node="node1")))
    assert len(world.reached(NODE4, 30080, 1) or ()) == 2
    assert len(world.reached(VIP, 80) or ()) == 1


def test_affinity_knows_where_backends_are() -> None:
    world = World(service(affinity_seconds=60), slice_of(HERE, THERE))
    info = world.info(VIP, 80)
    assert info is not None
    assert (info.affinity_timeout, bool(info.flags & ServiceFlags.AFFINITY)) == (60, True)
    places = world.services.tables["backend_slots"].desired
    assert {int.from_bytes(slot, "little") for slot in places.values()} == {0, 1}
    world.tell(slice_of(THERE))
    assert [int.from_bytes(slot, "little") for slot in places.values()] == [0]
    world.tell(service(affinity_seconds=0))
    assert not places


def test_source_ranges_guard_the_load_balancer_from_outside() -> None:
    web = service(type="LoadBalancer", ingress_ips=(LB,), source_ranges=(N("10.0.0.0/8"), N("fd00::/8")))
    world = World(web, slice_of(HERE))
    guard = ServiceFlags.SOURCE_RANGES
    assert world.flags(LB, 80, 1) & guard
    assert not any(world.flags(*at) & guard for at in ((LB, 80, 0), (NODE4, 30080, 1), (VIP, 80, 0)))
    assert len(world.services.tables["source_ranges"].desired) == 1
    assert World(web, source_ranges_everywhere=True).flags(NODE4, 30080, 1) & guard
    world.tell(replace(web, annotations={"service.cilium.io/src-ranges-policy": "deny"}))
    assert world.flags(LB, 80, 1) & ServiceFlags.SOURCE_DENY
    world.tell(replace(web, source_ranges=()))
    assert not world.flags(LB, 80, 1) & guard
    assert not world.services.tables["source_ranges"].desired


def test_look_up_tables_are_for_the_outside_only() -> None:
    web = service(type="NodePort")
    world = World(web, slice_of(HERE, THERE), algorithm=Algorithm.MAGLEV, maglev_size=251)
    assert world.flags(NODE4, 30080, 1) & ServiceFlags.MAGLEV
    assert not world.flags(VIP, 80) & ServiceFlags.MAGLEV
    assert len(world.services.tables["maglev"].desired) == 1, "IPv6 has no backends and needs no table"
    assert not World(service(), slice_of(HERE), algorithm=Algorithm.MAGLEV).services.tables["maglev"].desired
    world.forget(web)
    assert not world.services.tables["maglev"].desired


@pytest.mark.parametrize(
    ("mode", "tcp", "udp"),
    [(Forwarding.SNAT, False, False), (Forwarding.DSR, True, True), (Forwarding.HYBRID, True, False)],
)
def test_forwarding(mode: Forwarding, tcp: bool, udp: bool) -> None:
    ports = (HTTP, ServicePort("dns", 53, 17, 53, 30053))
    world = World(service(type="NodePort", ports=ports), forwarding=mode)
    info = world.info(NODE4, 30053, 1, 17)
    assert info is not None
    found = bool(world.flags(NODE4, 30080, 1) & ServiceFlags.DSR), bool(info.flags & ServiceFlags.DSR)
    assert found == (tcp, udp)
    assert not world.flags(VIP, 80) & ServiceFlags.DSR


@pytest.mark.parametrize(
    ("annotations", "expected", "problem"),
    [
        ({"type": "LoadBalancer"}, both(LB), False),
        ({"type": "NodePort, ClusterIP"}, CLUSTER_IP | NODE_PORT, False),
        ({"type": "Nonsense,ClusterIP"}, CLUSTER_IP, True),
        ({"node": "edge"}, CLUSTER_IP, False),
        ({"node-selector": "topology.kubernetes.io/zone in (a, c)"}, CLUSTER_IP | NODE_PORT | both(LB), False),
        ({"node-selector": "topology.kubernetes.io/zone notin (a)"}, CLUSTER_IP, False),
        ({"node-selector": "((("}, CLUSTER_IP, True),
        ({"src-ranges-policy": "maybe"}, CLUSTER_IP | NODE_PORT | both(LB), True),
    ],
)
def test_annotations(annotations: dict[str, str], expected: set[Any], problem: bool) -> None:
    named = {f"service.cilium.io/{name}": value for name, value in annotations.items()}
    world = World(service(type="LoadBalancer", ingress_ips=(LB,), annotations=named))
    assert world.frontends() == expected
    assert [kind for _, kind in world.problems()] == (["bad-annotation"] if problem else [])


def test_algorithm_and_mode_by_annotation_only_where_allowed() -> None:
    names = {"service.cilium.io/lb-algorithm": "maglev", "service.cilium.io/forwarding-mode": "dsr"}
    web = service(type="NodePort", annotations=names)
    wished = ServiceFlags.MAGLEV | ServiceFlags.DSR
    assert World(web, slice_of(HERE), annotations=True).flags(NODE4, 30080, 1) & wished == wished
    assert not World(web, slice_of(HERE)).flags(NODE4, 30080, 1) & wished


def pod(name: str, port: int, host_ip: str = "", **more: Any) -> Pod:
    host = HostPort(port, 8080, 6, A(host_ip) if host_ip else None)
    facts = {"node": "node1", "addresses": (A("10.1.0.9"),), "phase": "Running", **more}
    return Pod("ns", name, host_ports=(host,), **facts)


def test_host_ports() -> None:
    world = World()
    world.services.set_pod(("ns", "p"), pod("p", 8080))
    world.services.settle()
    anywhere = {("0.0.0.0", 8080, 0), ("::", 8080, 0)}
    assert world.frontends() == {(a, 8080, scope) for a in (NODE4, NODE6) for scope in (0, 1)} | anywhere
    assert world.reached(NODE4, 8080, 1) == ["10.1.0.9:8080"]
    assert world.flags(NODE4, 8080, 1) & ServiceFlags.HOST_PORT
    assert not list(world.services.services()), "policies know nothing of them"
    for other in (pod("p", 8080, phase="Succeeded"), pod("p", 8080, node="node2"), pod("p", 8080, host_network=True)):
        world.services.set_pod(("ns", "p"), other)
        world.services.settle()
        assert not world.frontends()
    world.services.set_pod(("ns", "p"), pod("p", 8080, NODE4))
    world.services.settle()
    assert world.frontends() == {(NODE4, 8080, 0), (NODE4, 8080, 1)}
    world.services.set_pod(("ns", "p"), pod("p", 30080))
    world.services.settle()
    assert not world.frontends()
    assert [kind for _, kind in world.problems()] == ["port-out-of-range"]
    world.services.set_pod(("ns", "p"), None)
    world.services.settle()
    assert not world.problems()


def test_node_ports_are_at_addresses_of_all_nodes_and_at_loopback_for_sockets() -> None:
    web = service(type="NodePort", cluster_ips=(VIP, "fd00:96::1"), external_policy=LOCAL)
    world = World(web, slice_of(HERE, THERE))
    everybody = ["10.1.0.1:8080", "10.2.0.1:8080"]
    assert world.reached("0.0.0.0", 30080) == everybody, "from inside the cluster, whatever the external policy"
    assert world.reached("0.0.0.0", 30080, 1) is None, "sockets are inside"
    assert world.reached("::", 30080) == []
    assert world.reached(NODE4, 30080, 1) == everybody[:1]
    assert World(service(type="NodePort"), slice_of(HERE)).reached("::", 30080) is None, "one family only"


def test_two_services_want_one_address() -> None:
    old, young = service("old", created="2026-01-01T00:00:00Z"), service("young", created="2026-02-01T00:00:00Z")
    behind = (slice_of(HERE, service="old"), slice_of(THERE, service="young"))
    for order in ((old, young), (young, old)):
        world = World(*order, *behind)
        assert world.reached(VIP, 80) == ["10.1.0.1:8080"]
        assert world.problems() == [("young", "address-taken")]
        world.forget(old)
        assert world.reached(VIP, 80) == ["10.2.0.1:8080"]
        assert world.problems() == [("old", "slice-without-service")]
        world.forget(young)
        assert not world.frontends()


def test_duplicated_node_ports_leave_the_cluster_addresses_alone() -> None:
    one, two = service("a", "NodePort"), service("b", "NodePort", cluster_ips=("10.96.0.2",))
    world = World(one, two, slice_of(HERE, service="a"), slice_of(THERE, service="b"))
    assert world.problems() == [("b", "node-port-taken")]
    assert world.reached(NODE4, 30080, 1) == ["10.1.0.1:8080"]
    assert world.reached("10.96.0.2", 80) == ["10.2.0.1:8080"]


def test_one_address_may_carry_services_on_different_ports() -> None:
    world = World(service("a"), service("b", ports=(replace(HTTP, port=81),)))
    assert not world.problems()
    world.forget(service("a"))
    assert world.frontends() == {(VIP, 81, 0), (VIP, 0, 0)}, "its other ports are still nobody's"


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ((service(type="NodePort", ports=(replace(HTTP, node_port=99),)),), "port-out-of-range"),
        ((service(), slice_of(HERE, family=6)), "wrong-family"),
        ((slice_of(HERE),), "slice-without-service"),
        ((service(ports=(HTTP, replace(HTTP, port=81)))), "ambiguous-ports"),
        ((service(cluster_ips=(NODE4,)),), "address-taken"),
        ((service(external_ips=("fd00::77",)),), "wrong-family"),
        ((service(cluster_ips=("0.0.0.0",)),), "address-taken"),
    ],
)
def test_what_is_wrong_is_told_and_harms_nobody(found: Any, kind: str) -> None:
    good = service("good", cluster_ips=("10.96.0.9",))
    objects = found if isinstance(found, tuple) else (found,)
    world = World(*objects, good, slice_of(HERE, service="good"))
    assert dict(world.problems()) == {"web": kind}
    assert world.reached("10.96.0.9", 80) == ["10.1.0.1:8080"]


def test_many_backends() -> None:
    many = tuple(endpoint(f"10.{100 + i // 65536}.{i // 256 % 256}.{i % 256}") for i in range(10_000))
    world = World(service(type="NodePort"), slice_of(*many))
    assert len(world.reached(VIP, 80) or ()) == 10_000
    world.services.tables["backends"].take()
    world.tell(slice_of(*many[1:]))
    puts, removals = world.services.tables["backends"].take()
    assert (len(puts), len(removals)) == (1, 1), "the last one takes the place of the one that went"


def test_a_full_map_is_told_and_used_again() -> None:
    other = service("other", cluster_ips=("10.96.0.2",))
    world = World(service(), slice_of(*(endpoint(f"10.1.0.{i}") for i in range(8))), max_backends=10)
    world.tell(other, slice_of(*(endpoint(f"10.2.0.{i}") for i in range(5)), service="other"))
    assert world.problems() == [("other", "no-room")]
    assert world.reached("10.96.0.2", 80) == []
    assert not world.flags("10.96.0.2", 80) & ServiceFlags.REFUSE
    world.tell(slice_of(HERE))
    assert not world.problems()
    assert len(world.reached("10.96.0.2", 80) or ()) == 5


def test_health_checks_count_active_endpoints_of_the_node() -> None:
    found = slice_of(HERE, endpoint("10.1.0.2", state="terminating"), THERE)
    web = service(type="LoadBalancer", external_policy=LOCAL, health_check_node_port=31000)
    (check,) = World(web, found).services.health_checks()
    assert (check.port, check.local_endpoints) == (31000, 1)
    assert not World(replace(web, external_policy=CLUSTER), found).services.health_checks()


def test_packed_entries_are_the_structs() -> None:
    six, raw = A("fd00::9"), bytes(15) + b"\1"
    assert (
        entries.service_key(six, 80, 6, 1) == lb.ServiceKey(address=six.packed, port=0x5000, protocol=6, scope=1).pack()
    )
    info = lb.ServiceInfo(
        service_id=1, backend_count=2, flags=3, affinity_timeout=4, maglev_size=5, maglev_seed=6
    ).pack()
    assert entries.service_info(1, 2, 3, affinity_seconds=4, maglev_size=5, maglev_seed=6) == info
    assert entries.backend_key(7, 8) == lb.BackendKey(service_id=7, slot=8).pack()
    assert (
        entries.backend_value(raw, 80, 6, local=True)
        == lb.Backend(address=raw, port=0x5000, protocol=6, flags=1).pack()
    )
    assert entries.backend_slot_key(7, raw + b"\0P") == lb.BackendSlotKey(address=raw, service_id=7, port=0x5000).pack()
    assert entries.maglev_key(7, 1) == lb.MaglevKey(service_id=7, piece=1).pack()
    wanted = lb.SourceRangeKey(prefixlen=32 + 96 + 8, service_id=7, address=bytes(10) + b"\xff\xff\x0a\0\0\0").pack()
    assert entries.source_range_key(7, N("10.0.0.0/8")) == wanted
    assert entries.revnat_value(six, 80) == lb.Revnat(address=six.packed, port=0x5000).pack()
