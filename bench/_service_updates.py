"""The agent's side of the Service bench: its engine, fed with Services and EndpointSlices as the API server tells them,
writes a node's maps; how long one change takes from there to the maps, and what all of it weighs."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._kube_proxy import Service
from services.agent.calc.engine import Engine
from services.agent.calc.maps import MAP_NAMES
from services.agent.calc.sequencer import SERVICE_MAPS
from services.agent.datapath.fake_map import FakeMap
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.sink import DatapathSink
from services.agent.sources.decode import decode
from services.model.objects import Upserted
from tests.datapath.node import Node

CHANGES = 300


def service_object(service: Service) -> dict[str, Any]:
    """As kubectl prints it, less what nobody reads."""
    namespace, _, rest = service.name.partition("/")
    port = {"name": "http", "protocol": "TCP", "port": service.port, "targetPort": 8080}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": rest.partition(":")[0]},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service.address,
            "clusterIPs": [service.address],
            "ipFamilies": ["IPv4"],
            "selector": {"app": "bench"},
            "ports": [port],
        },
    }


def slices(service: Service, moved: int = 0) -> list[dict[str, Any]]:
    """Its EndpointSlices, one per port that endpoints have. `moved` counts up one endpoint's address."""
    namespace, _, rest = service.name.partition("/")
    name = rest.partition(":")[0]
    by_port: dict[int, list[str]] = {}
    for index, endpoint in enumerate(service.endpoints):
        address, _, port = endpoint.rpartition(":")
        if moved and not index:
            address = f"10.250.{moved >> 8 & 255}.{moved & 255}"
        by_port.setdefault(int(port), []).append(address)
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": namespace,
                "name": f"{name}-{port}",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": port}],
            "endpoints": [
                {"addresses": [address], "conditions": {"ready": True, "serving": True, "terminating": False}}
                for address in addresses
            ],
        }
        for port, addresses in by_port.items()
    ]


def _told(document: dict[str, Any]) -> Upserted:
    thing = decode(document)
    assert thing is not None
    return Upserted(thing)


class Agent:
    """Writes the maps of Services of `node`; its other maps stay as they are."""

    def __init__(self, node: Node) -> None:
        self._maps: dict[str, PinnedMap] = {name: node.map(name) for name in SERVICE_MAPS}
        fakes: dict[str, Any] = {name: FakeMap(name) for name in MAP_NAMES if name not in self._maps}
        self._engine = Engine("bench", sources=())
        self._sink = DatapathSink(fakes | self._maps)
        self._services: list[Service] = []
        self._known: set[str] = set()
        self._empty = {name: _kernel_bytes(table) for name, table in self._maps.items()}
        self._rss = _rss()

    def set_services(self, services: Sequence[Service]) -> None:
        """These and no others; only ever more than before."""
        self._services = list(services)
        for service in services:
            if service.name not in self._known:
                self._known.add(service.name)
                for document in (service_object(service), *slices(service)):
                    self._engine.apply(_told(document))
        self._flush()

    def _flush(self) -> None:
        if not self._sink.apply(self._engine.flush()):
            raise RuntimeError(f"the maps refused entries: {self._sink.errors}")

    def update_ms(self) -> tuple[float, float]:
        """(p50, p99) of one endpoint's change, decoding of the slice included. Services that nobody uses change."""
        others = [service for service in self._services if "/svc-" in service.name] or self._services
        taken = []
        for turn in range(CHANGES):
            chosen = others[turn * 7919 % len(others)]
            document = slices(chosen, moved=turn + 1)[0]
            started = time.perf_counter()
            self._engine.apply(_told(document))
            self._flush()
            taken.append((time.perf_counter() - started) * 1000)
        for service in others:
            for document in slices(service):
                self._engine.apply(_told(document))
        self._flush()
        taken.sort()
        return statistics.median(taken), taken[int(len(taken) * 0.99)]

    def memory(self) -> dict[str, float]:
        """Bytes per Service and per backend."""
        used = {name: _kernel_bytes(table) - self._empty[name] for name, table in self._maps.items()}
        count = len(self._services)
        return {
            "service_bytes": (used["services"] + used["revnat"] + used["source_ranges"] + used["maglev"]) / count,
            "backend_bytes": (used["backends"] + used["backend_slots"]) / (2 * count),
            "agent_service_bytes": (_rss() - self._rss) / count,
        }


def _kernel_bytes(table: PinnedMap) -> int:
    """What the kernel says that a map takes."""
    for line in Path(f"/proc/self/fdinfo/{table.fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    return 0


def _rss() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
