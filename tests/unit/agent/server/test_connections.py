"""The connection table in the status and in the metrics: the pod that has most is named, and so is one that floods."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.agent.abi.conntrack import CT_ENTRY, CtFlags
from services.agent.abi.ct_room import CT_USAGE
from services.agent.abi.endpoints import MAX_ENDPOINTS
from services.agent.datapath.room import FLOOD, Room
from services.agent.server.connections import Connections
from services.common.pb.agent.v1 import agent_pb2 as pb


class Maps:
    """`ct_usage`, and `ct_limit` that nobody asks."""

    def __init__(self) -> None:
        self.usage = np.zeros(MAX_ENDPOINTS, CT_USAGE)

    def chunks(self, count: int = 0) -> Any:
        yield b"", self.usage.tobytes(), MAX_ENDPOINTS

    def update_batch(self, entries: Any) -> None:
        pass


@pytest.fixture
def maps() -> Maps:
    return Maps()


@pytest.fixture
def room(maps: Maps) -> Room:
    return Room(maps, maps, quota=5)


def sweep(room: Room, maps: Maps, **settled: int) -> None:
    """Pods e3, e4, … have so many settled connections."""
    counts = {int(name[1:]): count for name, count in settled.items()}
    room.begin()
    for endpoint, count in counts.items():
        entries = np.zeros(count, CT_ENTRY)
        entries["endpoint_id"], entries["flags"] = endpoint, CtFlags.SETTLED
        maps.usage["settled"][endpoint] = count
        room.kept(entries)
    room.end()


def made(room: Room, entries: int = 12) -> tuple[Connections, CollectorRegistry]:
    registry = CollectorRegistry()
    collector = SimpleNamespace(entries=entries, max_entries=100, fill=entries / 100, removed_total=7)
    pods = {3: "web", 4: "attacker"}
    records = {
        number: SimpleNamespace(endpoint=SimpleNamespace(namespace="shop", pod=name)) for number, name in pods.items()
    }
    manager = cast(Any, SimpleNamespace(endpoints=records))
    return Connections(registry, cast(Any, collector), room, manager), registry


def test_the_pod_with_most_connections_comes_first(room: Room, maps: Maps) -> None:
    sweep(room, maps, e3=2, e4=4)
    connections, registry = made(room)
    view = connections.view()
    assert (view.entries, view.max_entries, view.quota) == (12, 100, 5)
    assert [(pod.namespace, pod.pod, pod.entries) for pod in view.heaviest] == [
        ("shop", "attacker", 4),
        ("shop", "web", 2),
    ]
    assert connections.check().health == pb.HEALTH_OK
    labels = {"namespace": "shop", "pod": "attacker"}
    assert registry.get_sample_value("ciliate_conntrack_heaviest_entries", labels) == 4
    assert registry.get_sample_value("ciliate_conntrack_pressure") == 0.12


def test_a_pod_at_its_quota_is_named(room: Room, maps: Maps) -> None:
    sweep(room, maps, e3=5)
    said = made(room)[0].check()
    assert said.health == pb.HEALTH_DEGRADED
    assert "shop/web" in said.message
    assert "ct_quota" in said.message


def test_a_flood_is_named_while_it_lasts(room: Room, maps: Maps) -> None:
    maps.usage["evicted"][4] = 10 * FLOOD
    sweep(room, maps, e3=1)
    connections, registry = made(room)
    assert connections.check().health == pb.HEALTH_OK, "it was before this agent's time"
    maps.usage["evicted"][4] += 2 * FLOOD
    sweep(room, maps, e3=1)
    assert "shop/attacker" in connections.check().message
    labels = {"namespace": "shop", "pod": "attacker"}
    assert registry.get_sample_value("ciliate_conntrack_evicted_total", labels) == 12 * FLOOD
    sweep(room, maps, e3=1)
    assert connections.check().health == pb.HEALTH_OK


def test_a_table_that_is_nearly_full_says_who_fills_it(room: Room, maps: Maps) -> None:
    sweep(room, maps, e3=2, e4=4)
    message = made(room, entries=95)[0].check().message
    assert "95 of 100" in message
    assert "shop/attacker (4)" in message
