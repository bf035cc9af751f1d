"""The service map: nodes and edges with verdicts, rates and latencies, from columns.

A connection between two pods is seen where it leaves and where it arrives. What passed is therefore counted per
direction, and the larger count is told; what was refused was refused in one place, so those counts are added. What
left and was refused on arrival did not pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from services.flows.columns import Array, Kind
from services.flows.dictionary import Dictionaries
from services.flows.facets import AUDIT, DROPPED, responses
from services.model.verdict import Direction, Protocol
from services.relay.web.explain import explain
from services.relay.web.groups import group_of
from services.relay.web.params import NANOSECONDS
from services.relay.web.scan import Run, openers

MAX_EDGES = 1500
"""Edges told; the ones with the least traffic are counted as folded."""
TOP = 5
"""Ports and reasons told per edge."""
BUCKETS = 60
COLUMNS = (
    "time_ns", "source", "destination", "policy", "http", "destination_port", "kind", "verdict", "direction",
    "ct_state", "protocol", "drop_reason", "bytes", "reply_bytes", "rtt_us", "duration_us", "status",
)  # fmt: skip
"""What `add` looks at."""
DIRECTIONS = 3
SERVER_ERROR = 500


@dataclass(slots=True)
class _Edge:
    passed: Array = field(default_factory=lambda: np.zeros(DIRECTIONS, np.int64))
    """Connections, per direction; likewise for requests, answers, errors and bytes."""
    requests: Array = field(default_factory=lambda: np.zeros(DIRECTIONS, np.int64))
    errors: Array = field(default_factory=lambda: np.zeros(DIRECTIONS, np.int64))
    queries: Array = field(default_factory=lambda: np.zeros(DIRECTIONS, np.int64))
    octets: Array = field(default_factory=lambda: np.zeros(DIRECTIONS, np.int64))
    dropped: int = 0
    stopped: int = 0
    """Refused on arrival; its sender saw it pass. HTTP requests aside: their connections did pass."""
    refused_requests: int = 0
    audited: int = 0
    last_ns: int = 0
    latencies: list[Array] = field(default_factory=list)
    rtts: list[Array] = field(default_factory=list)
    ports: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """(protocol, port) -> [passed, refused]."""
    reasons: dict[tuple[int, int, int, int, int], int] = field(default_factory=dict)
    """(kind, verdict, drop reason, direction, decision) -> rows."""

    @property
    def connections(self) -> int:
        """That passed from end to end, as far as either end tells."""
        left = int(self.passed[Direction.EGRESS]) - self.stopped
        return max(left, int(self.passed[Direction.INGRESS]), int(self.passed[0]))

    @property
    def weight(self) -> int:
        return self.connections + int(self.queries.max()) + self.dropped + self.audited


class Graph:
    """Adds runs of rows up. Numbers of decisions are read while their segments are pinned."""

    def __init__(self, since_ns: int, until_ns: int, dictionaries: Dictionaries) -> None:
        self._since, self._until, self._dictionaries = since_ns, until_ns, dictionaries
        self._edges: dict[tuple[str, str], _Edge] = {}
        self._explained: dict[tuple[int, int, int, int, int], dict[str, Any] | None] = {}
        self._timeline = np.zeros((2, BUCKETS), np.int64)
        self.rows = 0

    def add(self, run: Run, table: Array, ids: Sequence[str]) -> None:
        """Count the rows of a run; `table` and `ids` name the groups."""
        columns = {name: run.columns[name][run.index] for name in COLUMNS}
        sources, destinations = openers(columns, table)
        pairs, where = np.unique(sources * len(ids) + destinations, return_inverse=True)
        edges = [
            self._edges.setdefault((ids[pair // len(ids)], ids[pair % len(ids)]), _Edge()) for pair in pairs.tolist()
        ]
        self.rows += len(run.index)
        rows = _Rows(columns, where, len(edges))
        _count(rows, edges)
        _measure(rows, edges)
        self._count_ports(rows, edges)
        self._count_reasons(rows, edges)
        self._count_times(rows)

    @staticmethod
    def _count_ports(rows: _Rows, edges: Sequence[_Edge]) -> None:
        shown = np.flatnonzero(rows.opened | rows.refused)
        port = np.where(np.isin(rows["protocol"], (Protocol.ICMP, Protocol.ICMPV6)), 0, rows["destination_port"])
        key = (rows.where * 256 + rows["protocol"]) * 65_536 + port
        for number, count, refused in _tally(key[shown], rows.refused[shown]):
            edge, rest = divmod(number, 256 * 65_536)
            counts = edges[edge].ports.setdefault(divmod(rest, 65_536), [0, 0])
            counts[0] += count - refused
            counts[1] += refused

    def _count_reasons(self, rows: _Rows, edges: Sequence[_Edge]) -> None:
        index = np.flatnonzero(rows.refused | rows.audited)
        names = ("kind", "verdict", "drop_reason", "direction", "policy")
        table = np.stack([rows.where[index], *(rows[name][index].astype(np.int64) for name in names)], axis=1)
        found, counts = np.unique(table, axis=0, return_counts=True)
        for (edge, *key), count in zip(found.tolist(), counts.tolist(), strict=True):
            kind, verdict, reason, direction, policy = key
            told = (kind, verdict, reason, direction, policy)
            edges[edge].reasons[told] = edges[edge].reasons.get(told, 0) + count
            if told not in self._explained:
                decision = self._dictionaries.decisions[policy]
                self._explained[told] = explain(kind, verdict, reason, direction, decision)

    def _count_times(self, rows: _Rows) -> None:
        span = max(1, self._until - self._since)
        place = np.clip((rows["time_ns"] - self._since) * BUCKETS // span, 0, BUCKETS - 1)
        for line, mask in enumerate((rows.opened | rows.requests, rows.refused)):
            self._timeline[line] += np.bincount(place[mask], minlength=BUCKETS)

    def answer(self) -> dict[str, Any]:
        """What the page draws."""
        ordered = sorted(self._edges.items(), key=lambda each: (-each[1].weight, each[0]))
        edges = [self._edge(*pair, edge) for pair, edge in ordered[:MAX_EDGES]]
        return {
            "since": self._since / NANOSECONDS,
            "until": self._until / NANOSECONDS,
            "rows": self.rows,
            "folded": max(0, len(ordered) - MAX_EDGES),
            "nodes": _nodes(edges),
            "edges": edges,
            "timeline": {
                "start": self._since / NANOSECONDS,
                "step": (self._until - self._since) / BUCKETS / NANOSECONDS,
                "passed": self._timeline[0].tolist(),
                "refused": self._timeline[1].tolist(),
            },
        }

    def _edge(self, source: str, destination: str, edge: _Edge) -> dict[str, Any]:
        seconds = max(1e-9, (self._until - self._since) / NANOSECONDS)
        connections = edge.connections
        passed = connections + int(edge.queries.max()) + int(edge.requests.max())
        return {
            "id": f"{source}|{destination}",
            "source": source,
            "destination": destination,
            "verdict": _verdict(passed, edge),
            "connections": connections,
            "rate": (connections or int(edge.requests.max() or edge.queries.max())) / seconds,
            "refused": edge.dropped,
            "audited": edge.audited,
            "bytes": int(edge.octets.max()),
            "rtt_ms": _percentiles(edge.rtts),
            "http": _http(edge),
            "dns": int(edge.queries.max()),
            "last": edge.last_ns / NANOSECONDS,
            "ports": list(_ports(edge)),
            "reasons": [
                found | {"count": count}
                for key, count in sorted(edge.reasons.items(), key=lambda each: -each[1])[:TOP]
                if (found := self._explained[key]) is not None
            ],
        }


class _Rows:
    """A run's columns, the place of each row's edge, and what each row is."""

    def __init__(self, columns: dict[str, Array], where: Array, edges: int) -> None:
        self._columns, self.where, self.edges = columns, where, edges
        kind, verdict = columns["kind"], columns["verdict"]
        self.refused: Array = verdict == DROPPED
        self.audited: Array = (verdict == AUDIT) & np.isin(kind, (Kind.NEW, Kind.VERDICT_CHANGE, Kind.HTTP))
        self.opened: Array = (kind == Kind.NEW) & ~self.refused
        self.answers: Array = responses(columns) & (kind == Kind.HTTP)
        self.requests: Array = (kind == Kind.HTTP) & ~self.answers & ~self.refused
        self.direction: Array = np.minimum(columns["direction"], DIRECTIONS - 1).astype(np.int64)

    def __getitem__(self, name: str) -> Array:
        return self._columns[name]

    def per_edge(self, mask: Array, weights: Array | None = None) -> list[int]:
        found = np.bincount(self.where[mask], None if weights is None else weights[mask], self.edges)
        return [int(each) for each in found.tolist()]

    def per_direction(self, mask: Array, weights: Array | None = None) -> Array:
        """Edge, direction -> how many."""
        key = self.where[mask] * DIRECTIONS + self.direction[mask]
        found = np.bincount(key, None if weights is None else weights[mask], self.edges * DIRECTIONS)
        return found.reshape(self.edges, DIRECTIONS).astype(np.int64)


def _count(rows: _Rows, edges: Sequence[_Edge]) -> None:
    kind = rows["kind"]
    octets = rows["bytes"].astype(np.float64) + rows["reply_bytes"]
    per_direction = {
        "passed": rows.per_direction(rows.opened),
        "requests": rows.per_direction(rows.requests),
        "errors": rows.per_direction(rows.answers & (rows["status"] >= SERVER_ERROR)),
        "queries": rows.per_direction((kind == Kind.DNS_QUERY) & ~rows.refused),
        "octets": rows.per_direction(kind == Kind.CLOSE, octets),
    }
    dropped, audited = rows.per_edge(rows.refused), rows.per_edge(rows.audited)
    refused_requests = rows.per_edge(rows.refused & (kind == Kind.HTTP))
    stopped = rows.per_edge(rows.refused & (kind != Kind.HTTP) & (rows.direction == Direction.INGRESS))
    last = np.zeros(len(edges), np.int64)
    np.maximum.at(last, rows.where, rows["time_ns"])
    for place, edge in enumerate(edges):
        for name, counts in per_direction.items():
            setattr(edge, name, getattr(edge, name) + counts[place])
        edge.dropped += dropped[place]
        edge.audited += audited[place]
        edge.stopped += stopped[place]
        edge.refused_requests += refused_requests[place]
        edge.last_ns = max(edge.last_ns, int(last[place]))


def _measure(rows: _Rows, edges: Sequence[_Edge]) -> None:
    """Latencies of answers and round trips of connections, in microseconds."""
    ends = np.isin(rows["kind"], (Kind.UPDATE, Kind.CLOSE)) & (rows["rtt_us"] > 0)
    for name, mask, column in (("latencies", rows.answers, "duration_us"), ("rtts", ends, "rtt_us")):
        index = np.flatnonzero(mask)
        index = index[np.argsort(rows.where[index], kind="stable")]
        bounds = np.searchsorted(rows.where[index], np.arange(len(edges) + 1))
        for place in np.flatnonzero(np.diff(bounds)).tolist():
            getattr(edges[place], name).append(rows[column][index[bounds[place] : bounds[place + 1]]])


def _tally(keys: Array, marked: Array) -> Iterator[tuple[int, int, int]]:
    """(key, rows, marked rows)."""
    found, where, counts = np.unique(keys, return_inverse=True, return_counts=True)
    marks = np.bincount(where, marked, len(found)).astype(np.int64)
    yield from zip(found.tolist(), counts.tolist(), marks.tolist(), strict=True)


def _verdict(passed: int, edge: _Edge) -> str:
    if edge.dropped:
        return "mixed" if passed else "refused"
    return "audited" if edge.audited else "passed"


def _percentiles(values: Sequence[Array]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p99 = np.percentile(np.concatenate(values), (50, 99)).tolist()
    return {"p50": p50 / 1000, "p99": p99 / 1000}


def _http(edge: _Edge) -> dict[str, Any] | None:
    requests = int(edge.requests.max())
    if not requests and not edge.refused_requests:
        return None
    return {
        "requests": requests,
        "refused": edge.refused_requests,
        "errors": int(edge.errors.max()),
        "latency_ms": _percentiles(edge.latencies),
    }


def _ports(edge: _Edge) -> Iterator[dict[str, Any]]:
    for (protocol, port), (passed, refused) in sorted(edge.ports.items(), key=lambda each: -sum(each[1]))[:TOP]:
        name = Protocol(protocol).name if protocol in set(Protocol) else str(protocol)
        yield {"protocol": name, "port": port, "passed": passed, "refused": refused}


def _nodes(edges: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for edge in edges:
        for side, counter in (("source", "outgoing"), ("destination", "incoming")):
            text = edge[side]
            if text not in found:
                group = group_of(text)
                found[text] = {
                    "id": text, "kind": group.kind, "name": group.name, "namespace": group.namespace,
                    "detail": group.detail, "outgoing": 0, "incoming": 0, "refused": 0,
                }  # fmt: skip
            found[text][counter] += 1
            found[text]["refused"] += edge["refused"]
    return sorted(found.values(), key=lambda node: (node["namespace"], node["name"], node["id"]))
