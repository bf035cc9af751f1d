"""Services in any order of events come to the same: incremental equals from scratch, slots are never counted wrongly,
and at every moment of writing a frontend counts only slots that are there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.abi.lb import ServiceInfo
from services.agent.calc.maps import Put
from services.agent.calc.sequencer import SERVICE_MAPS
from services.agent.calc.services import LbOptions, Services, maglev
from services.agent.calc.services.entries import backend_key
from services.agent.calc.services.options import MAGLEV_SIZES, Algorithm
from services.agent.calc.services.sets import keep_slots
from services.model.objects import HostPort, KubeNode, Pod
from services.model.services import EndpointSlice, Service, ServicePort
from tests.unit.agent.calc.lb_world import CLUSTER, LOCAL, NODE, A, N, endpoint, service, slice_of

OPTIONS = LbOptions(algorithm=Algorithm.MAGLEV, maglev_size=251, max_backends=24, max_frontends=40)
NAMES = ("a", "b", "c")
Event = tuple[str, Any]


def services() -> st.SearchStrategy[Event]:
    port = st.builds(
        ServicePort,
        st.just("http"),
        st.sampled_from([80, 81]),
        st.just(6),
        st.just(8080),
        st.sampled_from([0, 30080, 9]),
    )
    return st.builds(
        lambda **fields: ("set", service(**fields)),
        name=st.sampled_from(NAMES),
        type=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
        cluster_ips=st.sampled_from([("10.96.0.1",), ("10.96.0.2",), ("10.96.0.1", "fd00::96"), ()]),
        ingress_ips=st.sampled_from([(), ("203.0.113.9",)]),
        external_ips=st.sampled_from([(), (), ("203.0.113.9",), ("192.168.0.1",)]),
        ports=st.lists(port, min_size=1, max_size=2).map(tuple),
        internal_policy=st.sampled_from([CLUSTER, LOCAL]),
        external_policy=st.sampled_from([CLUSTER, LOCAL]),
        affinity_seconds=st.sampled_from([0, 60]),
        source_ranges=st.sampled_from([(), (N("10.0.0.0/8"), N("fd00::/8"))]),
        created=st.sampled_from(["", "2026"]),
    )


def slices() -> st.SearchStrategy[Event]:
    one = st.builds(
        endpoint,
        st.sampled_from([f"10.1.0.{i}" for i in range(6)] + ["fd00::1", "fd00::2"]),
        st.sampled_from(["node1", "node2"]),
        st.sampled_from(["active", "active", "terminating", "leaving", "maintenance"]),
        zone_hints=st.sampled_from([(), ("a",), ("b",)]),
    )
    return st.builds(
        lambda owner, number, found: ("set", slice_of(*found, service=owner, name=f"{owner}-{number}")),
        st.sampled_from(NAMES),
        st.sampled_from([1, 2]),
        st.lists(one, max_size=6),
    )


def others() -> st.SearchStrategy[Event]:
    gone = st.one_of(services(), slices()).map(lambda event: ("forget", event[1]))
    zone = st.sampled_from(["a", "b"]).map(lambda z: ("set", KubeNode("node1", {"topology.kubernetes.io/zone": z})))
    pod = st.builds(
        lambda port, phase: Pod(
            "ns", "p", node="node1", phase=phase, addresses=(A("10.1.0.9"),), host_ports=(HostPort(port, 80, 6),)
        ),
        st.sampled_from([80, 8080, 30080]),
        st.sampled_from(["Running", "Failed"]),
    )
    return st.one_of(gone, gone, zone, pod.map(lambda found: ("set", found)))


def tell(registry: Services, event: Event) -> None:
    what, thing = event
    there = thing if what == "set" else None
    match thing:
        case Service():
            registry.set_service(thing.key, there)
        case EndpointSlice():
            registry.set_slice(thing.key, there)
        case KubeNode():
            registry.set_node(there)
        case Pod():
            registry.set_pod(("ns", thing.name), there)


def meaning(registry: Services) -> dict[str, Any]:
    """The maps without the numbers of slots, which depend on history."""
    tables = registry.tables
    sets: dict[int, set[bytes]] = {}
    for raw, info in ((raw, ServiceInfo.unpack(raw)) for raw in tables["services"].desired.values()):
        slots = [tables["backends"].desired[backend_key(info.service_id, n)] for n in range(info.backend_count)]
        assert len(set(slots)) == len(slots), raw
        sets[info.service_id] = set(slots)
    pieces = {}
    for key, piece in tables["maglev"].desired.items():
        number = int.from_bytes(key[:4], "little")
        entries = [int.from_bytes(piece[i : i + 2], "little") for i in range(0, 2 * OPTIONS.maglev_size, 2)]
        pieces[key] = [tables["backends"].desired[backend_key(number, slot)] for slot in entries]
    return {
        "services": dict(tables["services"].desired),
        "revnat": dict(tables["revnat"].desired),
        "sets": sets,
        "backends": len(tables["backends"].desired),
        "maglev": pieces,
        "ranges": dict(tables["source_ranges"].desired),
        "places": set(tables["backend_slots"].desired),
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(services(), services(), slices(), slices(), others()), min_size=1, max_size=14), st.data())
def test_incremental_equals_from_scratch(events: list[Event], data: st.DataObject) -> None:
    registry = Services(NODE, replace(OPTIONS, max_backends=1 << 20, max_frontends=1 << 20))
    for event in events:
        tell(registry, event)
        if data.draw(st.booleans()):
            registry.settle()
    registry.settle()
    scratch = Services(NODE, replace(OPTIONS, max_backends=1 << 20, max_frontends=1 << 20))
    for event in events:
        tell(scratch, event)
    scratch.settle()
    assert meaning(registry) == meaning(scratch)
    assert list(registry.problems()) == list(scratch.problems())
    assert set(registry.live_backends()) == set(scratch.live_backends())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(services(), services(), slices(), slices(), others()), min_size=1, max_size=14))
def test_every_step_of_writing_counts_only_slots_that_are_there(events: list[Event]) -> None:
    registry = Services(NODE, OPTIONS)
    kernel: dict[str, dict[bytes, bytes]] = {name: {} for name in SERVICE_MAPS}
    for event in events:
        tell(registry, event)
        registry.settle()
        changes = {name: registry.tables[name].take() for name in SERVICE_MAPS}
        ordered = [c for name in SERVICE_MAPS for c in changes[name][0]]
        ordered += [c for name in reversed(SERVICE_MAPS) for c in changes[name][1]]
        for change in ordered:
            if isinstance(change, Put):
                kernel[change.map][change.key] = change.value
            else:
                del kernel[change.map][change.key]
            for raw in kernel["services"].values():
                info = ServiceInfo.unpack(raw)
                assert all(
                    backend_key(info.service_id, slot) in kernel["backends"] for slot in range(info.backend_count)
                )
    assert all(kernel[name] == registry.tables[name].desired for name in SERVICE_MAPS)
    assert len(kernel["backends"]) <= OPTIONS.max_backends
    assert len(kernel["services"]) <= OPTIONS.max_frontends
    used = {value[:18] for value in kernel["backends"].values()}
    assert used <= set(registry.live_backends()), "connections to whoever may be chosen are kept"


@given(st.lists(st.integers(0, 30), unique=True), st.lists(st.integers(0, 30), unique=True))
def test_backends_keep_their_slots(before: list[int], after: list[int]) -> None:
    old = [(bytes([n]), n, False) for n in before]
    new = [(bytes([n]), n, False) for n in sorted(after)]
    slots = keep_slots(old, new)
    assert sorted(slots) == new
    for slot, member in enumerate(old[: len(new)]):
        if member in new:
            assert slots[slot] == member


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1 << 31), st.sampled_from(MAGLEV_SIZES[:4]))
def test_tables_are_even_and_change_little(count: int, seed: int, size: int) -> None:
    names = [f"10.1.0.{i}:80".encode() for i in range(count)]
    table = maglev.fill(names, size, seed)
    shares = [table.count(index) for index in range(count)]
    assert len(table) == size
    assert max(shares) - min(shares) <= 1
    fewer = maglev.fill(names[:-1], size, seed) if count > 1 else table
    moved = sum(1 for a, b in zip(table, fewer, strict=True) if a != b and a != count - 1)
    assert moved <= max(size // 3, size // count), "those of others stay, but for a few"
