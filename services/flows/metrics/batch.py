"""A batch of rows as families look at it, and counting by several columns at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from services.flows.columns import Array, Columns
from services.flows.dictionary import Dictionaries
from services.flows.entries import HttpRequest, Party
from services.flows.facets import event_types
from services.flows.filters.base import Table
from services.flows.metrics.names import Namer
from services.model.addresses import V4_MAPPED_PREFIX
from services.model.identity import Reserved

WORLD = frozenset({Reserved.WORLD, Reserved.WORLD_IPV4, Reserved.WORLD_IPV6})

COUNTABLE = 1 << 17
"""Combinations up to which counting in a table is cheaper than sorting."""


class Facts:
    """What is asked of parties, remembered from batch to batch."""

    def __init__(self) -> None:
        self.ipv4 = Table[Party](lambda party: party.address.startswith(V4_MAPPED_PREFIX))
        self.host = Table[Party](lambda party: party.identity == Reserved.HOST)
        self.world = Table[Party](lambda party: party.identity in WORLD)
        self.request = Namer[HttpRequest](lambda request: f"{request.method} {request.version}")


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
    def second(self) -> tuple[Array, Array]:
        """(type, sub type) of the second facets; type 0 where there is none."""
        return event_types(self.columns, 1)


def counted(keys: Sequence[Array], rows: Array) -> Iterator[tuple[tuple[int, ...], int]]:
    """(numbers, how many) of every distinct combination of the columns among `rows` (indices)."""
    if not len(rows):
        return
    combined = np.zeros(len(rows), np.int64)
    sizes = []
    for key in keys:
        taken = key[rows]
        sizes.append(int(taken.max()) + 1)
        combined = combined * sizes[-1] + taken
    if math.prod(sizes) <= COUNTABLE:
        counts = np.bincount(combined)
        found = np.flatnonzero(counts)
        counts = counts[found]
    else:
        found, counts = np.unique(combined, return_counts=True)
    for number, count in zip(found.tolist(), counts.tolist(), strict=True):
        numbers = []
        for size in reversed(sizes):
            number, last = divmod(number, size)  # noqa: PLW2901
            numbers.append(last)
        yield tuple(reversed(numbers)), count
