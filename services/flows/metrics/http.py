"""Metrics of HTTP requests and responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from services.flows.columns import Array, Kind
from services.flows.metrics.batch import Batch
from services.flows.metrics.family import Series
from services.model.verdict import Direction

REPORTERS = {int(Direction.EGRESS): "client", int(Direction.INGRESS): "server"}
VERSIONS = {"10": "HTTP/1.0", "11": "HTTP/1.1"}


def requests(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    rows = np.flatnonzero((batch["kind"] == Kind.HTTP) & ~batch.responses)
    yield Series(rows, (batch.http, batch["direction"]), lambda key: (*_request(batch, key[0]), _reporter(key[1])))


def responses(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    keys = (batch.http, batch["status"], batch["direction"])

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        return (*_request(batch, key[0]), str(key[1]), _reporter(key[2]))

    yield Series(np.flatnonzero(batch.responses), keys, labels)


def durations(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    keys = (batch.http, batch["direction"])
    yield Series(np.flatnonzero(batch.responses), keys, lambda key: (_request(batch, key[0])[0], _reporter(key[1])))


def seconds(batch: Batch) -> Array:
    return batch["duration_us"] / 1e6


def _request(batch: Batch, number: int) -> tuple[str, str]:
    """(method, protocol)."""
    method, _, version = batch.facts.request.names[number].partition(" ")
    return method, VERSIONS.get(version, "HTTP/1")


def _reporter(direction: int) -> str:
    return REPORTERS.get(direction, "unknown")
