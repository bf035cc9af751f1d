"""The service map: nodes and edges with verdicts, rates and latencies, from columns.

A connection between two pods is seen where it leaves and where it arrives. What passed is therefore counted per
direction, and the larger count is told; what was refused was refused in one place, so those counts are added. What
left and was refused on arrival did not pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from services.flows.columns import Array
from services.flows.dictionary import Dictionaries
from services.model.verdict import Protocol
from services.relay.web.explain import explain
from services.relay.web.groups import group_of
from services.relay.web.params import NANOSECONDS
from services.relay.web.scan import Run
from services.relay.web.tally import COLUMNS, Rows, Tally

__all__ = ["COLUMNS", "Graph"]

MAX_EDGES = 1500
"""Edges told; the ones with the least traffic are counted as folded."""
TOP = 5
"""Ports and reasons told per edge."""
BUCKETS = 60


class Graph:
    """Adds runs of rows up. Numbers of decisions are read while their segments are pinned."""

    def __init__(self, since_ns: int, until_ns: int, dictionaries: Dictionaries) -> None:
        self._since, self._until, self._dictionaries = since_ns, until_ns, dictionaries
        self._tally = Tally()
        self._explained: dict[tuple[int, ...], dict[str, Any] | None] = {}
        self._timeline = np.zeros((2, BUCKETS), np.int64)
        self.rows = 0

    def add(self, run: Run, table: Array, ids: Sequence[str]) -> None:
        """Count the rows of a run; `table` and `ids` name the groups."""
        rows = self._tally.add(run, table, ids)
        self.rows += len(run.index)
        self._explain()
        self._count_times(rows)

    def _explain(self) -> None:
        for reasons in self._tally.reasons.values():
            for key in reasons.keys() - self._explained.keys():
                kind, verdict, reason, direction, policy = key
                decision = self._dictionaries.decisions[policy]
                self._explained[key] = explain(kind, verdict, reason, direction, decision)

    def _count_times(self, rows: Rows) -> None:
        span = max(1, self._until - self._since)
        place = np.clip((rows["time_ns"] - self._since) * BUCKETS // span, 0, BUCKETS - 1)
        for line, mask in enumerate((rows.opened | rows.requests, rows.refused)):
            self._timeline[line] += np.bincount(place[mask], minlength=BUCKETS)

    def answer(self) -> dict[str, Any]:
        """What the page draws."""
        edges = self._edges()
        return {
            "since": self._since / NANOSECONDS,
            "until": self._until / NANOSECONDS,
            "rows": self.rows,
            "folded": max(0, len(self._tally.edges) - MAX_EDGES),
            "nodes": _nodes(edges),
            "edges": edges,
            "timeline": {
                "start": self._since / NANOSECONDS,
                "step": (self._until - self._since) / BUCKETS / NANOSECONDS,
                "passed": self._timeline[0].tolist(),
                "refused": self._timeline[1].tolist(),
            },
        }

    def _edges(self) -> list[dict[str, Any]]:
        """The busiest ones, the busiest first."""
        tally = self._tally
        connections, queries, requests = tally.connections, tally["queries"].max(1), tally["requests"].max(1)
        weight = connections + queries + tally["dropped"] + tally["audited"]
        order = sorted(range(len(tally.edges)), key=lambda place: (-weight[place], tally.edges[place]))[:MAX_EDGES]
        passed = connections + queries + requests
        latencies, rtts, ports = tally.percentiles("latency"), tally.percentiles("rtt"), tally.ports(TOP)
        seconds = max(1e-9, (self._until - self._since) / NANOSECONDS)
        found = []
        for place in order:
            source, destination = tally.edges[place]
            dropped, audited = int(tally["dropped"][place]), int(tally["audited"][place])
            rate = int(connections[place] or requests[place] or queries[place]) / seconds
            found.append(
                {
                    "id": f"{source}|{destination}",
                    "source": source,
                    "destination": destination,
                    "verdict": _verdict(int(passed[place]), dropped, audited),
                    "connections": int(connections[place]),
                    "rate": rate,
                    "refused": dropped,
                    "audited": audited,
                    "bytes": int(tally["octets"][place].max()),
                    "rtt_ms": rtts.get(place),
                    "http": self._http(place, latencies.get(place)),
                    "dns": int(queries[place]),
                    "last": int(tally["last_ns"][place]) / NANOSECONDS,
                    "ports": [_port(*each) for each in ports.get(place, ())],
                    "reasons": self._reasons(place),
                }
            )
        return found

    def _http(self, place: int, latency: dict[str, float] | None) -> dict[str, Any] | None:
        requests, refused = int(self._tally["requests"][place].max()), int(self._tally["refused_requests"][place])
        if not requests and not refused:
            return None
        errors = int(self._tally["errors"][place].max())
        return {"requests": requests, "refused": refused, "errors": errors, "latency_ms": latency}

    def _reasons(self, place: int) -> list[dict[str, Any]]:
        known = sorted(self._tally.reasons.get(place, {}).items(), key=lambda each: -each[1])[:TOP]
        return [found | {"count": count} for key, count in known if (found := self._explained[key]) is not None]


def _verdict(passed: int, dropped: int, audited: int) -> str:
    if dropped:
        return "mixed" if passed else "refused"
    return "audited" if audited else "passed"


def _port(protocol: int, port: int, passed: int, refused: int) -> dict[str, Any]:
    name = Protocol(protocol).name if protocol in set(Protocol) else str(protocol)
    return {"protocol": name, "port": port, "passed": passed, "refused": refused}


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
            if edge["source"] != edge["destination"] or side == "source":
                found[text]["refused"] += edge["refused"]
    return sorted(found.values(), key=lambda node: (node["namespace"], node["name"], node["id"]))
