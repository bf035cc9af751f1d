"""Records as the datapath writes them, and names from dictionaries."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from services.agent.abi.events import EVENT_VERSION, FLOW_EVENT, HTTP_EVENT
from services.agent.events.getters import PodRef
from services.flows.entries import NearestRule, PolicyRef, ServiceRef
from services.model.addresses import to_bytes


def raw(address: str) -> bytes:
    return to_bytes(ipaddress.ip_address(address))


@dataclass
class StubNames:
    """Getters on plain dictionaries; counts how often it is asked."""

    generation: int = 1
    labels: dict[int, tuple[str, ...]] = field(default_factory=dict)
    pods: dict[bytes, PodRef] = field(default_factory=dict)
    rules: dict[int, PolicyRef] = field(default_factory=dict)
    isolation: dict[tuple[int, int], tuple[PolicyRef, ...]] = field(default_factory=dict)
    services: dict[int, ServiceRef] = field(default_factory=dict)
    parts: dict[tuple[int, bytes], int] = field(default_factory=dict)
    near: NearestRule | None = None
    dns: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    asked: int = 0
    explained: list[tuple[int, ...]] = field(default_factory=list)

    def identity_labels(self, identity: int) -> tuple[str, ...]:
        return self.labels.get(identity, ())

    def pod_at(self, address: bytes) -> PodRef | None:
        self.asked += 1
        return self.pods.get(address)

    def dns_names(self, address: bytes) -> tuple[str, ...]:
        return self.dns.get(address, ())

    def rule_policy(self, rule_id: int) -> PolicyRef | None:
        return self.rules.get(rule_id)

    def divided(self) -> frozenset[int]:
        return frozenset(identity for identity, _ in self.parts)

    def part_at(self, identity: int, address: bytes) -> int:
        return self.parts.get((identity, address), identity)

    def isolating(self, endpoint_id: int, direction: int) -> tuple[PolicyRef, ...]:
        return self.isolation.get((endpoint_id, direction), ())

    def nearest(self, endpoint_id: int, direction: int, peer: int, protocol: int, port: int) -> NearestRule | None:
        self.explained.append((endpoint_id, direction, peer, protocol, port))
        return self.near

    def service_ref(self, service_id: int) -> ServiceRef | None:
        return self.services.get(service_id)


WEB_POLICY = PolicyRef("CiliumNetworkPolicy", "default", "deny-all-ingress-to-webapp", "uid-1")


@pytest.fixture
def names() -> StubNames:
    """Two pods, a policy, a Service."""
    return StubNames(
        labels={1001: ("k8s:app=client",), 1002: ("k8s:app=my-webapp",), 2: ("reserved:world",)},
        pods={
            raw("10.0.0.1"): PodRef("default", "client", 5, ("Deployment", "client")),
            raw("10.0.0.2"): PodRef("default", "web", 7),
        },
        rules={900: WEB_POLICY},
        isolation={(7, 1): (WEB_POLICY,)},
        near=NearestRule(PolicyRef("CiliumNetworkPolicy", "default", "p", "", "spec.ingress[0]", 4), ("peer",)),
        services={3: ServiceRef("default", "my-webapp-svc")},
    )


class Records:
    """Makes arrays of records; what is not said is that of an allowed TCP connection client -> web."""

    def _make(self, dtype: Any, base: dict[str, Any], rows: tuple[dict[str, Any], ...]) -> Any:
        records = np.zeros(len(rows), dtype)
        for place, row in enumerate(rows):
            for name, value in (base | row).items():
                is_address = name in ("saddr", "daddr")
                records[name][place] = np.frombuffer(raw(value), np.uint8) if is_address else value
        return records

    base = {
        "version": EVENT_VERSION,
        "endpoint_id": 7,
        "time_ns": 1000,
        "saddr": "10.0.0.1",
        "daddr": "10.0.0.2",
        "sport": 40000,
        "dport": 80,
        "protocol": 6,
        "direction": 1,
        "src_identity": 1001,
        "dst_identity": 1002,
    }

    def flow(self, *rows: dict[str, Any]) -> Any:
        return self._make(FLOW_EVENT, self.base | {"type": 1, "tcp_flags": 2}, rows)

    def http(self, *rows: dict[str, Any]) -> Any:
        base = self.base | {"type": 6, "rule_id": 900, "http_version": 11, "method": b"GET", "method_len": 3}
        return self._make(HTTP_EVENT, base | {"path": b"/api/v1/users", "path_len": 13}, rows)


@pytest.fixture
def records() -> Records:
    return Records()
