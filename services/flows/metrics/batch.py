"""A batch of rows as families look at it, and counting by several columns at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from services.flows.columns import Array, Columns, Kind
from services.flows.dictionary import Dictionaries
from services.flows.entries import Decision, HttpRequest, L7Record, NameRecord, Party
from services.flows.facets import event_types, responses
from services.flows.filters.base import Table
from services.flows.metrics.names import Namer
from services.flows.summary import record_type
from services.model.addresses import V4_MAPPED_PREFIX
from services.model.identity import Reserved

WORLD = frozenset({Reserved.WORLD, Reserved.WORLD_IPV4, Reserved.WORLD_IPV6})

COUNTABLE = 1 << 17
"""Combinations up to which counting in a table is cheaper than sorting."""
LIMITS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of histograms in seconds, Prometheus's default; the last bucket has none."""


class Facts:
    """What is asked of parties, remembered from batch to batch."""

    def __init__(self) -> None:
        self.ipv4 = Table[Party](lambda party: party.address.startswith(V4_MAPPED_PREFIX))
        self.host = Table[Party](lambda party: party.identity == Reserved.HOST)
        self.world = Table[Party](lambda party: party.identity in WORLD)
        self.request = Namer[L7Record](
            lambda entry: f"{entry.method} {entry.version}" if isinstance(entry, HttpRequest) else ""
        )
        self.dns = Namer[L7Record](_dns_text)
        self.decision = Namer[Decision](_decision_text)


def _dns_text(entry: L7Record) -> str:
    """rcode, type, addresses returned, types in the answer, name: apart by spaces, which none of them has."""
    if not isinstance(entry, NameRecord):
        return ""
    found = {"AAAA" if ":" in address else "A" for address in entry.addresses}
    types = "+".join(sorted(found | ({"CNAME"} if entry.aliases else set())))
    return f"{entry.rcode} {record_type(entry.qtype)} {entry.answers} {types or '-'} {entry.query}"


DEFAULT_DENY = "default deny"


def _decision_text(entry: Decision) -> str:
    """Policies and rules, apart by a tab; `default deny` where no rule matched."""
    policies = ", ".join(dict.fromkeys(map(str, entry.policies)))
    rules = ", ".join(dict.fromkeys(policy.rule for policy in entry.policies if policy.rule))
    return f"{policies}\t{rules if entry.matched else DEFAULT_DENY}"


@dataclass(frozen=True)
class Batch:
    """Rows, each with both of its facets: what Hubble tells as two flows is counted as two where it counts flows."""

    columns: Columns
    dictionaries: Dictionaries
    facts: Facts

    def parties(self, column: str, table: Table[Party]) -> Array:
        """The rows whose `source` or `destination` is what the table asks for."""
        found: Array = table.answers(self.dictionaries.parties)[self.columns[column]]
        return found

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    @cached_property
    def first(self) -> tuple[Array, Array]:
        """(type, sub type) of the first facets."""
        return event_types(self.columns, 0)

    @cached_property
    def responses(self) -> Array:
        """Rows that are HTTP responses."""
        found: Array = responses(self.columns) & (self.columns["kind"] == Kind.HTTP)
        return found

    @cached_property
    def http(self) -> Array:
        """Numbers of method and version (`facts.request`)."""
        found: Array = self.facts.request.table(self.dictionaries.requests)[self.columns["http"]]
        return found

    @cached_property
    def decision(self) -> Array:
        """Numbers of the policies and rules that decided (`facts.decision`)."""
        found: Array = self.facts.decision.table(self.dictionaries.decisions)[self.columns["policy"]]
        return found

    @cached_property
    def dns(self) -> Array:
        """Numbers of what DNS messages say (`facts.dns`)."""
        found: Array = self.facts.dns.table(self.dictionaries.requests)[self.columns["http"]]
        return found

    @cached_property
    def second(self) -> tuple[Array, Array]:
        """(type, sub type) of the second facets; type 0 where there is none."""
        return event_types(self.columns, 1)


def measured(
    keys: Sequence[Array], rows: Array, values: Array | None, buckets: int
) -> Iterator[tuple[tuple[int, ...], Array, float]]:
    """(numbers, rows per bucket, sum of `values`) of every distinct combination. `values`: seconds, of all rows."""
    if not len(rows):
        return
    combined = np.zeros(len(rows), np.int64)
    sizes = []
    for key in keys:
        taken = key[rows]
        sizes.append(int(taken.max()) + 1)
        combined = combined * sizes[-1] + taken
    found, where = _distinct(combined, math.prod(sizes))
    seconds = np.zeros(len(rows)) if values is None else values[rows]
    places = np.zeros(len(rows), np.int64) if values is None else np.searchsorted(LIMITS, seconds)
    counts = np.bincount(where * buckets + places, minlength=len(found) * buckets).reshape(len(found), buckets)
    sums = np.bincount(where, weights=seconds, minlength=len(found))
    for number, series, total in zip(found.tolist(), counts, sums.tolist(), strict=True):
        numbers = []
        for size in reversed(sizes):
            number, last = divmod(number, size)  # noqa: PLW2901
            numbers.append(last)
        yield tuple(reversed(numbers)), series, total


def _distinct(combined: Array, size: int) -> tuple[Array, Array]:
    """(distinct numbers, for each row the place of its number among them), by the cheaper of two ways."""
    if size > COUNTABLE:
        found, where = np.unique(combined, return_inverse=True)
        return found, where
    marks = np.zeros(size, np.bool_)
    marks[combined] = True
    found = np.flatnonzero(marks)
    places = np.zeros(size, np.int64)
    places[found] = np.arange(len(found))
    return found, places[combined]
