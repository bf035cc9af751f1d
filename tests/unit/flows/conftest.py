"""A store that tests fill row by row, in words."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2
from services.flows.columns import STORED, Kind
from services.flows.entries import Decision, HttpRequest, NodeRef, Party, PolicyRef, ProcessRef, ServiceRef
from services.flows.filters import Filters
from services.flows.render import Renderer
from services.flows.select import Part, Selection
from services.flows.store import FlowStore
from services.model.addresses import to_bytes

NODE = NodeRef("node1", labels=("kubernetes.io/hostname=node1",))


class Flows:
    """Rows go in by keyword; what is not said is that of a plain allowed TCP connection."""

    def __init__(self, capacity: int = 4096) -> None:
        self.store = FlowStore(capacity)
        self.client = self.party("10.0.0.1", 1001, pod="client", labels=("k8s:app=client", "k8s:role=frontend"))
        self.server = self.party("10.0.0.2", 1002, pod="server", labels=("k8s:app=server",), endpoint_id=7)
        self.policy = PolicyRef("CiliumNetworkPolicy", "default", "deny-all-ingress-to-webapp")
        self._time = 1_700_000_000_000_000_000

    @staticmethod
    def party(address: str, identity: int, *, pod: str = "", namespace: str = "default", **rest: Any) -> Party:
        """A pod, or the world where no pod is named."""
        return Party(
            to_bytes(ipaddress.ip_address(address)),
            identity,
            pod=pod,
            namespace=namespace if pod else "",
            cluster="default" if pod else "",
            **rest,
        )

    def add(self, node: NodeRef = NODE, **fields: Any) -> int:
        """Append one row; returns its time."""
        self._time += 1_000_000
        dictionaries = self.store.dictionaries
        values: dict[str, Any] = {
            "time_ns": self._time,
            "source": self.client,
            "destination": self.server,
            "source_port": 40000,
            "destination_port": 80,
            "kind": Kind.NEW,
            "verdict": flow_pb2.FORWARDED,
            "direction": flow_pb2.INGRESS,
            "protocol": 6,
            "tcp_flags": 2,
        } | fields
        for name, value in values.items():
            match value:
                case Party():
                    values[name] = dictionaries.parties.intern(value)
                case Decision():
                    values[name] = dictionaries.decisions.intern(value)
                case ServiceRef():
                    values[name] = dictionaries.services.intern(value)
                case HttpRequest():
                    values[name] = dictionaries.requests.intern(value)
                case ProcessRef():
                    values[name] = dictionaries.processes.intern(value)
        columns = {name: np.array([value], STORED[name]) for name, value in values.items()}
        self.store.append(columns, self.store.node(node))
        self._time = int(values["time_ns"])
        return self._time

    def allow(self, **fields: Any) -> int:
        """A connection that a policy's rule allowed."""
        return self.add(policy=Decision(True, (self.policy,)), match_type=2, **fields)

    def drop(self, **fields: Any) -> int:
        """A packet that no rule allowed."""
        values = {"drop_reason": 133, "policy": Decision(False, (self.policy,))} | fields
        return self.add(kind=Kind.DROP, verdict=flow_pb2.DROPPED, **values)

    def http(self, path: str = "/api/v1/users", method: str = "GET", **fields: Any) -> int:
        """A request."""
        request = HttpRequest(method, path, 11, len(path))
        return self.add(kind=Kind.HTTP, http=request, policy=Decision(True, (self.policy,)), **fields)

    def matching(self, *allow: flow_pb2.FlowFilter, deny: tuple[flow_pb2.FlowFilter, ...] = ()) -> list[int]:
        """Numbers (0, 1, ...) of the rows that pass."""
        filters = Filters(allow, deny)
        found: list[int] = []
        for segment in self.store.segments:
            columns = {name: values[: segment.rows] for name, values in segment.columns.items()}
            passed, _ = filters.match(columns, self.store.dictionaries)
            found += (np.flatnonzero(passed) + segment.base).tolist()
        return found

    def responses(
        self, *allow: flow_pb2.FlowFilter, fields: Any = None, details: bool = False
    ) -> list[observer_pb2.GetFlowsResponse]:
        """The rows that pass, rendered."""
        filters = Filters(allow)
        parts = []
        for segment in self.store.segments:
            columns = {name: values[: segment.rows] for name, values in segment.columns.items()}
            passed, facets = filters.match(columns, self.store.dictionaries)
            rows = np.flatnonzero(passed | (columns["kind"] == Kind.LOST))
            parts.append(Part(columns, rows, facets[rows]))
        renderer = Renderer(self.store.dictionaries, "1.2.3", fields, details=details)
        return [
            response
            for columns, facets in Selection(parts).chunks(7)
            for response in renderer.responses(columns, facets)
        ]

    def rendered(self, *allow: flow_pb2.FlowFilter, details: bool = False) -> list[flow_pb2.Flow]:
        """The flows alone."""
        return [response.flow for response in self.responses(*allow, details=details)]


@pytest.fixture
def flows() -> Flows:
    """An empty store and words to fill it."""
    return Flows()


@pytest.fixture
def new_flows() -> Callable[[int], Flows]:
    """Stores of a wanted capacity."""
    return Flows
