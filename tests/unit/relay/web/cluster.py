"""A small shop whose flows the page shows: five workloads, a name outside, one pair that policy keeps apart."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np

from services.common.pb.flow import flow_pb2
from services.flows.columns import STORED, Kind
from services.flows.entries import Decision, HttpRequest, NearestRule, NodeRef, Party, PolicyRef
from services.flows.store import FlowStore
from services.model.addresses import to_bytes

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
SCRIPT = "/<script>alert(1)</script>"
"""A path that would run if it were ever taken for HTML."""


def party(address: str, identity: int, name: str = "", namespace: str = "shop", **rest: Any) -> Party:
    """A pod of a Deployment, or of nothing where no name is given."""
    where = (
        {"namespace": namespace, "pod": f"{name}-1", "workload": name, "workload_kind": "Deployment"} if name else {}
    )
    return Party(to_bytes(ipaddress.ip_address(address)), identity, **(where | rest))


FRONTEND = party("10.0.0.1", 1001, "frontend", labels=("k8s:app=frontend",))
CART = party("10.0.0.2", 1002, "cart", labels=("k8s:app=cart",))
REDIS = party("10.0.0.3", 1003, "redis")
VISITOR = party("10.0.0.4", 1004, "visitor")
DNS = party("10.0.0.5", 1005, "coredns", "kube-system")
STRIPE = party("93.184.216.34", 2, labels=("reserved:world",), names=("api.stripe.com",))
WORLD = party("93.184.216.35", 2, labels=("reserved:world",))

ISOLATES = PolicyRef("CiliumNetworkPolicy", "shop", "redis")
RULE = PolicyRef("CiliumNetworkPolicy", "shop", "redis", rule="spec.ingress[0]")
REFUSED = Decision(False, (ISOLATES,), NearestRule(RULE, ("peer",)))
ALLOWED = Decision(True, (PolicyRef("CiliumNetworkPolicy", "shop", "cart", rule="spec.ingress[0]"),))


class Shop:
    """Rows go in by keyword, a millisecond apart."""

    def __init__(self, start_ns: int = START, capacity: int = 1 << 16) -> None:
        self.store = FlowStore(capacity)
        self.node = self.store.node(NodeRef("node1"))
        self.now = start_ns

    def add(self, source: Party, destination: Party, **fields: Any) -> None:
        """One row: what is not said is that of an opened TCP connection, seen where it arrives."""
        self.now += SECOND // 1000
        names = self.store.dictionaries
        values: dict[str, Any] = {
            "time_ns": self.now,
            "source": names.parties.intern(source),
            "destination": names.parties.intern(destination),
            "source_port": 40_000,
            "destination_port": 80,
            "kind": Kind.NEW,
            "verdict": flow_pb2.FORWARDED,
            "direction": flow_pb2.INGRESS,
            "protocol": 6,
        } | fields
        for name, value in values.items():
            if isinstance(value, Decision):
                values[name] = names.decisions.intern(value)
            elif isinstance(value, HttpRequest):
                values[name] = names.requests.intern(value)
        self.store.append({name: np.array([value], STORED[name]) for name, value in values.items()}, self.node)

    def connect(self, source: Party, destination: Party, **fields: Any) -> None:
        """Opened and closed, as both of its ends saw it."""
        for direction in (flow_pb2.EGRESS, flow_pb2.INGRESS):
            self.add(source, destination, direction=direction, policy=ALLOWED, **fields)
        counters = {"packets": 5, "reply_packets": 5, "bytes": 500, "reply_bytes": 1500, "rtt_us": 400}
        self.add(source, destination, kind=Kind.CLOSE, duration_us=9000, **(counters | fields))

    def ask(self, source: Party, destination: Party, path: str, status: int, microseconds: int, **trace: Any) -> None:
        """A request, of a trace perhaps, and its answer."""
        request = HttpRequest("GET", path, 11)
        self.add(source, destination, kind=Kind.HTTP, http=request, policy=ALLOWED, **trace)
        answer = {"ct_state": 2, "source_port": 80, "destination_port": 40_000, "duration_us": microseconds} | trace
        self.add(destination, source, kind=Kind.HTTP, http=request, status=status, **answer)

    def refuse(self, source: Party, destination: Party, **fields: Any) -> None:
        """A first packet that default deny dropped."""
        given = {"kind": Kind.DROP, "verdict": flow_pb2.DROPPED, "drop_reason": 133, "policy": REFUSED}
        self.add(source, destination, **(given | fields))

    def day(self) -> None:
        """What usually happens."""
        for _ in range(4):
            self.connect(FRONTEND, CART)
            self.ask(FRONTEND, CART, "/items", 200, 2000)
            self.connect(CART, REDIS, destination_port=6379)
        self.ask(FRONTEND, CART, SCRIPT, 500, 8000)
        self.connect(CART, STRIPE, destination_port=443)
        for _ in range(3):
            self.refuse(VISITOR, REDIS, destination_port=6379)
        self.connect(WORLD, FRONTEND)
