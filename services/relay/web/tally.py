"""Counts per edge of the map, in arrays: adding a run of rows costs a few passes over it, however many edges it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from services.flows.columns import Array, Kind
from services.flows.facets import AUDIT, DROPPED, responses
from services.model.verdict import Direction, Protocol
from services.relay.web.scan import Run, openers

COLUMNS = (
    "time_ns", "source", "destination", "policy", "http", "destination_port", "kind", "verdict", "direction",
    "ct_state", "protocol", "drop_reason", "bytes", "reply_bytes", "rtt_us", "duration_us", "status",
)  # fmt: skip
"""What is looked at."""
DIRECTIONS = 3
SERVER_ERROR = 500
PER_DIRECTION = ("passed", "requests", "errors", "queries", "octets")
"""Connections, HTTP requests, answers with 5xx, DNS questions, bytes of ended connections."""
PER_EDGE = ("dropped", "stopped", "refused_requests", "audited", "last_ns")
"""`stopped`: refused on arrival, while its sender saw it pass; HTTP requests aside, whose connections did pass."""
REASON = ("kind", "verdict", "drop_reason", "direction", "policy")


class Rows:
    """A run's rows: their columns, the place of each row's edge in the tally, and what each row is."""

    def __init__(self, columns: dict[str, Array], edge: Array) -> None:
        self._columns, self.edge = columns, edge
        kind, verdict = columns["kind"], columns["verdict"]
        self.refused: Array = verdict == DROPPED
        self.audited: Array = (verdict == AUDIT) & np.isin(kind, (Kind.NEW, Kind.VERDICT_CHANGE, Kind.HTTP))
        self.opened: Array = (kind == Kind.NEW) & ~self.refused
        self.answers: Array = responses(columns) & (kind == Kind.HTTP)
        self.requests: Array = (kind == Kind.HTTP) & ~self.answers & ~self.refused
        self.direction: Array = np.minimum(columns["direction"], DIRECTIONS - 1).astype(np.int64)

    def __getitem__(self, name: str) -> Array:
        return self._columns[name]


class Tally:
    """Edges in the order in which they were met, and arrays of counts by their places."""

    def __init__(self) -> None:
        self.edges: list[tuple[str, str]] = []
        self._places: dict[tuple[str, str], int] = {}
        self._counts: dict[str, Array] = {name: np.zeros((0, DIRECTIONS), np.int64) for name in PER_DIRECTION}
        self._counts |= {name: np.zeros(0, np.int64) for name in PER_EDGE}
        self._measures: dict[str, list[tuple[Array, Array]]] = {"latency": [], "rtt": []}
        self._ports: list[tuple[Array, Array, Array]] = []
        self.reasons: dict[int, dict[tuple[int, ...], int]] = {}
        """Edge -> kind, verdict, drop reason, direction, decision -> rows."""

    def __getitem__(self, name: str) -> Array:
        """Counts by place."""
        return self._counts[name]

    @property
    def connections(self) -> Array:
        """That passed from end to end, as far as either end tells."""
        passed = self["passed"]
        found: Array = np.maximum(
            passed[:, Direction.EGRESS] - self["stopped"], passed[:, [0, Direction.INGRESS]].max(1)
        )
        return found

    def add(self, run: Run, table: Array, ids: Sequence[str]) -> Rows:
        """Count the rows of a run; `table` and `ids` name the groups."""
        columns = {name: run.columns[name][run.index] for name in COLUMNS}
        sources, destinations = openers(columns, table)
        pairs, where = np.unique(sources * len(ids) + destinations, return_inverse=True)
        places = [self._place((ids[pair // len(ids)], ids[pair % len(ids)])) for pair in pairs.tolist()]
        self._grow()
        rows = Rows(columns, np.array(places, np.int64)[where])
        self._count(rows)
        self._measure(rows)
        self._count_ports(rows)
        self._count_reasons(rows)
        return rows

    def _place(self, edge: tuple[str, str]) -> int:
        place = self._places.get(edge)
        if place is None:
            place = self._places[edge] = len(self.edges)
            self.edges.append(edge)
        return place

    def _grow(self) -> None:
        more = len(self.edges) - len(self._counts["last_ns"])
        for name, counts in self._counts.items():
            self._counts[name] = np.concatenate([counts, np.zeros((more, *counts.shape[1:]), np.int64)])

    def _count(self, rows: Rows) -> None:
        kind, refused = rows["kind"], rows.refused
        octets = rows["bytes"].astype(np.float64) + rows["reply_bytes"]
        arriving = rows.direction == Direction.INGRESS
        self._sum("passed", rows, rows.opened)
        self._sum("requests", rows, rows.requests)
        self._sum("errors", rows, rows.answers & (rows["status"] >= SERVER_ERROR))
        self._sum("queries", rows, (kind == Kind.DNS_QUERY) & ~refused)
        self._sum("octets", rows, kind == Kind.CLOSE, octets)
        self._sum("dropped", rows, refused)
        self._sum("stopped", rows, refused & (kind != Kind.HTTP) & arriving)
        self._sum("refused_requests", rows, refused & (kind == Kind.HTTP))
        self._sum("audited", rows, rows.audited)
        np.maximum.at(self._counts["last_ns"], rows.edge, rows["time_ns"])

    def _sum(self, name: str, rows: Rows, mask: Array, weights: Array | None = None) -> None:
        counts = self._counts[name]
        place = rows.edge[mask] * DIRECTIONS + rows.direction[mask] if counts.ndim > 1 else rows.edge[mask]
        sums = np.bincount(place, None if weights is None else weights[mask], counts.size)
        counts += sums.astype(np.int64).reshape(counts.shape)

    def _measure(self, rows: Rows) -> None:
        ends = np.isin(rows["kind"], (Kind.UPDATE, Kind.CLOSE)) & (rows["rtt_us"] > 0)
        self._measures["latency"].append((rows.edge[rows.answers], rows["duration_us"][rows.answers]))
        self._measures["rtt"].append((rows.edge[ends], rows["rtt_us"][ends]))

    def _count_ports(self, rows: Rows) -> None:
        shown = rows.opened | rows.refused
        port = np.where(np.isin(rows["protocol"], (Protocol.ICMP, Protocol.ICMPV6)), 0, rows["destination_port"])
        keys = ((rows.edge << 24) | (rows["protocol"].astype(np.int64) << 16) | port)[shown]
        found, where, counts = np.unique(keys, return_inverse=True, return_counts=True)
        self._ports.append((found, counts, np.bincount(where, rows.refused[shown], len(found)).astype(np.int64)))

    def _count_reasons(self, rows: Rows) -> None:
        index = np.flatnonzero(rows.refused | rows.audited)
        table = np.stack([rows.edge[index], *(rows[name][index].astype(np.int64) for name in REASON)], axis=1)
        found, counts = np.unique(table, axis=0, return_counts=True)
        for (edge, *key), count in zip(found.tolist(), counts.tolist(), strict=True):
            known = self.reasons.setdefault(edge, {})
            known[tuple(key)] = known.get(tuple(key), 0) + count

    def percentiles(self, measure: str) -> dict[int, dict[str, float]]:
        """Edge -> p50 and p99 in milliseconds, by nearest rank; edges without a measurement are left out."""
        edges = np.concatenate([each[0] for each in self._measures[measure]] or [np.zeros(0, np.int64)])
        values = np.concatenate([each[1] for each in self._measures[measure]] or [np.zeros(0, np.uint32)])
        order = np.lexsort((values, edges))
        edges, values = edges[order], values[order] / 1000
        found, first, count = np.unique(edges, return_index=True, return_counts=True)
        ranks = [values[first + np.ceil(count * share).astype(np.intp) - 1].tolist() for share in (0.50, 0.99)]
        return {edge: {"p50": p50, "p99": p99} for edge, p50, p99 in zip(found.tolist(), *ranks, strict=True)}

    def ports(self, most: int) -> dict[int, list[tuple[int, int, int, int]]]:
        """Edge -> (protocol, port, passed, refused), the busiest first, at most so many."""
        found: dict[int, list[tuple[int, int, int, int]]] = {}
        for key, count, refused in self._busiest():
            told = found.setdefault(key >> 24, [])
            if len(told) < most:
                told.append((key >> 16 & 0xFF, key & 0xFFFF, count - refused, refused))
        return found

    def _busiest(self) -> Iterator[tuple[int, int, int]]:
        if not self._ports:
            return
        keys, where = np.unique(np.concatenate([each[0] for each in self._ports]), return_inverse=True)
        counts, refused = (
            np.bincount(where, np.concatenate([each[part] for each in self._ports]), len(keys)).astype(np.int64)
            for part in (1, 2)
        )
        order = np.argsort(-counts, kind="stable")
        yield from zip(keys[order].tolist(), counts[order].tolist(), refused[order].tolist(), strict=True)
