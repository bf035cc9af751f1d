"""Records of the rings -> flow columns. Pure: time, names and dictionaries come in as arguments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from services.agent.abi.events import EVENT_VERSION, CtState, EventFlags, EventType, HttpSubtype
from services.agent.events.enrich import Enricher
from services.flows.columns import DTYPES, TRACE, Array, Columns, take
from services.model.verdict import Direction, DropReason

FORWARDED, DROPPED, AUDIT = 1, 2, 4

WallTimes = Callable[[Array], Array]

_PLAIN = {
    "kind": "type",
    "direction": "direction",
    "ct_state": "ct_state",
    "protocol": "protocol",
    "tcp_flags": "tcp_flags",
    "drop_reason": "drop_reason",
    "match_type": "match_type",
    "policy_revision": "policy_revision",
}

_POLICY_DROPS = np.zeros(256, np.bool_)
_POLICY_DROPS[[DropReason.POLICY_DENIED, DropReason.POLICY_DENY]] = True
_POLICY_DROPS[DropReason.HTTP_DENIED :] = True
_POLICY_DROPS[[DropReason.CT_QUOTA_EXCEEDED, DropReason.PACKET_TOO_LARGE]] = False


def readable(records: Array, first: EventType, last: EventType) -> Array:
    """The records of this version with a type between `first` and `last`; the rest is counted by the caller."""
    kinds = records["type"]
    good = (records["version"] == EVENT_VERSION) & (kinds >= first) & (kinds <= last)
    return records if good.all() else records[good]


def connections(records: Array, enricher: Enricher, wall: WallTimes) -> Columns:
    """Columns of `FLOW_EVENT` records."""
    columns = _common(records, enricher, wall)
    kinds, reasons = records["type"], records["drop_reason"]
    dropped = (kinds == EventType.DROP) | ((kinds == EventType.VERDICT_CHANGE) & (reasons != 0))
    refused = _judge(columns, records, dropped)
    columns["policy"] = _decisions(records, refused, enricher)
    packets, octets = records["packets"], records["bytes"]
    columns["packets"], columns["reply_packets"] = packets[:, 0].copy(), packets[:, 1].copy()
    columns["bytes"], columns["reply_bytes"] = octets[:, 0].copy(), octets[:, 1].copy()
    for name in ("rtt_us", "retransmits", "duration_us"):
        columns[name] = records[name].copy()
    return columns


def requests(records: Array, enricher: Enricher, wall: WallTimes) -> Columns:
    """Columns of `HTTP_EVENT` records: a row per request, and one per response with source and destination swapped.

    A refused request has the status that the datapath answered. A record is written when its response comes, or when
    it is clear that none will: the request is older by `latency_us`.
    """
    columns = _common(records, enricher, wall)
    refused = _judge(columns, records, records["drop_reason"] != 0)
    columns["policy"] = _decisions(records, refused, enricher)
    columns["http"] = enricher.requests(records)
    columns["status"] = np.where(columns["verdict"] == DROPPED, records["status"], 0).astype(np.uint16)
    _traces(columns, records)
    answered = np.flatnonzero(records["subtype"] == HttpSubtype.ANSWERED)
    responses = _responses(columns, records, answered)
    columns["time_ns"] = columns["time_ns"] - records["latency_us"].astype(np.int64) * 1000
    return by_time(columns, responses) if len(answered) else columns


def _traces(columns: Columns, records: Array) -> None:
    """Which traces the requests belong to; nothing where none of them says."""
    traced = records["traced"] != 0
    if not traced.any():
        return
    halves, parents = records["trace_id"].byteswap(), records["parent_id"].byteswap()
    sources = (halves[:, 0], halves[:, 1], parents, records["trace_flags"])
    for name, values in zip(TRACE, sources, strict=True):
        columns[name] = np.where(traced, values, 0).astype(DTYPES[name])


def names(records: Array, enricher: Enricher, wall: WallTimes) -> Columns:
    """Columns of `NAME_EVENT` records: questions, answers with source and destination swapped, TLS server names."""
    enricher.learn(records[records["type"] == EventType.DNS_ANSWER])
    columns = _common(records, enricher, wall)
    answers = records["type"] == EventType.DNS_ANSWER
    for one, other in (("source", "destination"), ("source_port", "destination_port")):
        columns[one], columns[other] = (
            np.where(answers, columns[other], columns[one]),
            np.where(answers, columns[one], columns[other]),
        )
    refused = _judge(columns, records, records["drop_reason"] != 0)
    columns["policy"] = np.where(answers, 0, _decisions(records, refused, enricher)).astype(np.uint32)
    columns["http"] = enricher.messages(records)
    columns["duration_us"] = records["latency_us"].copy()
    return columns


def _responses(columns: Columns, records: Array, answered: Array) -> Columns:
    rows = take(columns, answered)
    for one, other in (("source", "destination"), ("source_port", "destination_port")):
        rows[one], rows[other] = rows[other], rows[one]
    count = len(answered)
    rows["ct_state"] = np.full(count, CtState.REPLY, np.uint8)
    rows["verdict"] = np.full(count, FORWARDED, np.uint8)
    rows["drop_reason"] = np.zeros(count, np.uint8)
    rows["policy"] = np.zeros(count, np.uint32)
    rows["status"] = records["status"][answered]
    rows["duration_us"] = records["latency_us"][answered]
    return rows


def _judge(columns: Columns, records: Array, dropped: Array) -> Array:
    """Fill the verdicts; which rows policy refuses, those among them that are only audited included."""
    audited = (records["flags"] & EventFlags.AUDIT) != 0
    columns["verdict"] = np.where(audited, AUDIT, np.where(dropped, DROPPED, FORWARDED)).astype(np.uint8)
    refused: Array = dropped | audited
    return refused


def _common(records: Array, enricher: Enricher, wall: WallTimes) -> Columns:
    columns: Columns = {name: records[field].copy() for name, field in _PLAIN.items()}
    columns["time_ns"] = wall(records["time_ns"])
    columns["source_port"] = records["sport"].astype(np.uint16)
    columns["destination_port"] = records["dport"].astype(np.uint16)
    columns["source"] = enricher.parties(records["saddr"], records["src_identity"])
    columns["destination"] = enricher.parties(records["daddr"], records["dst_identity"])
    columns["service"] = enricher.services(records["service_id"])
    near = np.where(records["direction"] == Direction.EGRESS, columns["source_port"], columns["destination_port"])
    columns["process"] = enricher.processes(records, near)
    return columns


def _decisions(records: Array, dropped: Array, enricher: Enricher) -> Array:
    """A denial by policy without a rule is default deny; other drops (no route, bad packet) have no policy."""
    denied = dropped & (_POLICY_DROPS[records["drop_reason"]] | (records["type"] == EventType.HTTP_REQUEST))
    return enricher.decisions(records, denied)


def by_time(first: Columns, second: Columns) -> Columns:
    """Two batches as one, in the order of time."""
    joined = {
        name: np.concatenate([_column(first, name, second), _column(second, name, first)])
        for name in first.keys() | second.keys()
    }
    order = np.argsort(joined["time_ns"], kind="stable")
    return {name: values[order] for name, values in joined.items()}


def _column(columns: Columns, name: str, other: Columns) -> Array:
    return columns[name] if name in columns else np.zeros(len(columns["time_ns"]), other[name].dtype)
