"""The columns of a history file that are for people: names instead of numbers, dictionary-encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array, Columns, Kind
from services.flows.entries import Decision, NodeRef, Party
from services.flows.wire import Content
from services.model.addresses import from_bytes
from services.model.verdict import Direction, DropReason, Protocol

Words = Mapping[int, str | int]

ENUMS: dict[str, Words] = {
    "kind": {int(kind): kind.name for kind in Kind},
    "verdict": {number: name for name, number in flow_pb2.Verdict.items() if number},
    "direction": {int(direction): direction.name for direction in Direction},
    "protocol": {int(protocol): protocol.name for protocol in Protocol if protocol},
    "drop_reason": {int(reason): reason.name for reason in DropReason},
}
"""Columns of numbers with fixed meanings."""


def _policies(entry: Content) -> str:
    return ", ".join(policy.place for policy in entry.policies) if isinstance(entry, Decision) else ""


_PARTY: dict[str, Callable[[Party], str | int]] = {
    "ip": lambda party: str(from_bytes(party.address)),
    "identity": lambda party: party.identity,
    "namespace": lambda party: party.namespace,
    "pod": lambda party: party.pod,
    "workload": lambda party: party.workload,
    "names": lambda party: ",".join(party.names),
    "labels": lambda party: ",".join(party.labels),
}
_ENTRY: tuple[tuple[str, str, str, Callable[[Content], str | int]], ...] = (
    ("policies", "policy", "decisions", _policies),
    ("service_namespace", "service", "services", lambda entry: str(getattr(entry, "namespace", ""))),
    ("service_name", "service", "services", lambda entry: str(getattr(entry, "name", ""))),
    ("http_method", "http", "requests", lambda entry: str(getattr(entry, "method", ""))),
    ("http_path", "http", "requests", lambda entry: str(getattr(entry, "path", ""))),
    ("name", "http", "requests", lambda entry: str(getattr(entry, "query", ""))),
    ("process", "process", "processes", lambda entry: str(getattr(entry, "name", ""))),
    ("executable", "process", "processes", lambda entry: str(getattr(entry, "executable", ""))),
    ("name_addresses", "http", "requests", lambda entry: ",".join(getattr(entry, "addresses", ()))),
)
"""(name in the file, column, dictionary, text)."""


def columns(
    rows: Columns, entries: Mapping[str, Mapping[int, Content]], nodes: Mapping[int, NodeRef]
) -> dict[str, pa.Array]:
    """Name in the file -> values."""
    found: dict[str, pa.Array] = {
        "node": encoded(rows["node"], {number: node.absolute for number, node in nodes.items()})
    }
    found |= {name: encoded(rows[name], meanings) for name, meanings in ENUMS.items()}
    for side in ("source", "destination"):
        for field, text in _PARTY.items():
            parties = {number: text(party) for number, party in entries["parties"].items() if isinstance(party, Party)}
            found[f"{side}_{field}"] = encoded(rows[side], parties, pa.uint32() if field == "identity" else pa.string())
    for name, column, dictionary, text_of in _ENTRY:
        found[name] = encoded(rows[column], {number: text_of(entry) for number, entry in entries[dictionary].items()})
    found["trace_id"] = hexadecimal(rows["trace_high"], rows["trace_low"])
    found["parent_span_id"] = hexadecimal(rows["parent_span"])
    return found


def hexadecimal(*halves: Array) -> pa.StringArray:
    """Numbers of 64 bits, one behind the other, as 16 digits each; null where all are 0."""
    texts = np.full(len(halves[0]), None, np.object_)
    known = np.flatnonzero(np.logical_or.reduce([half != 0 for half in halves]))
    for place, *values in zip(known.tolist(), *(half[known].tolist() for half in halves), strict=True):
        texts[place] = "".join(f"{value:016x}" for value in values)
    return pa.array(texts, pa.string())


def encoded(numbers: Array, meanings: Words, kind: pa.DataType | None = None) -> pa.DictionaryArray:
    """Numbers as what they stand for; null where that is nothing."""
    used = [number for number, word in meanings.items() if word != ""]
    places = np.full(max(int(numbers.max(initial=0)), *used, 0) + 1, -1, np.int32)
    places[used] = np.arange(len(used), dtype=np.int32)
    index = places[numbers]
    values = pa.array([meanings[number] for number in used], kind or pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(index, mask=index < 0), values)
