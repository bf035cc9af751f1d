"""Metrics of DNS questions and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from services.flows.columns import Array, Kind
from services.flows.facets import DROPPED
from services.flows.metrics.batch import Batch
from services.flows.metrics.family import Series
from services.flows.summary import RCODES as FAILURES

LABELS = ("rcode", "qtypes", "ips_returned")
RCODES = {0: "No Error", **FAILURES}


def queries(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    """Questions; those that policy refused have a code of their own."""
    asked, refused = batch["kind"] == Kind.DNS_QUERY, batch["verdict"] == DROPPED
    yield _messages(batch, asked & ~refused, options, lambda _: "")
    yield _messages(batch, asked & refused, options, lambda _: "Policy denied")


def responses(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    """Answers."""
    yield _messages(batch, batch["kind"] == Kind.DNS_ANSWER, options, lambda rcode: RCODES.get(rcode, ""))


def _messages(batch: Batch, rows: Array, options: Mapping[str, str], code: Callable[[int], str]) -> Series:
    def labels(key: Sequence[int]) -> tuple[str, ...]:
        rcode, qtype, addresses, _, query = _parts(batch, key[0])
        return (code(rcode), qtype, addresses, *((query,) if "query" in options else ()))

    return Series(_without_aaaa(batch, np.flatnonzero(rows), options), (batch.dns,), labels)


def types(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    """Answers by the types of records in them."""
    answers = _without_aaaa(batch, np.flatnonzero(batch["kind"] == Kind.DNS_ANSWER), options)
    for wanted in ("A", "AAAA", "CNAME"):
        known = {n: wanted in _parts(batch, n)[3].split("+") for n in np.unique(batch.dns[answers]).tolist()}
        rows = answers[[known[number] for number in batch.dns[answers].tolist()]] if len(answers) else answers

        def labels(key: Sequence[int], wanted: str = wanted) -> tuple[str, ...]:
            _, qtype, _, _, query = _parts(batch, key[0])
            return (wanted, qtype, *((query,) if "query" in options else ()))

        yield Series(rows, (batch.dns,), labels)


def _parts(batch: Batch, number: int) -> tuple[int, str, str, str, str]:
    """(rcode, type asked for, addresses returned, types returned, name)."""
    rcode, qtype, addresses, types, query = (batch.facts.dns.names[number] or "0 Unknown 0 - ").split(" ", 4)
    return int(rcode), qtype, addresses, types, query


def _without_aaaa(batch: Batch, rows: Array, options: Mapping[str, str]) -> Array:
    if "ignoreAAAA" not in options or not len(rows):
        return rows
    return rows[[_parts(batch, number)[1] != "AAAA" for number in batch.dns[rows].tolist()]]
