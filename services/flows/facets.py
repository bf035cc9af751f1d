"""Which Hubble flow a row is: event types, and the two flows that one row can stand for.

Hubble agents tell a policed packet twice: as a policy verdict (5) and as a trace (4) or a drop (1). Here it is one
row with two *facets*. Filters decide which is shown: the first facet that passes. So `--type policy-verdict`,
`--type drop` and `--type trace` all find it, and a plain listing shows it once.
"""

from __future__ import annotations

import numpy as np

from services.flows.columns import Array, Columns, Kind
from services.model.verdict import Direction, DropReason

DROP, TRACE, POLICY_VERDICT, L7 = 1, 4, 5, 129
NO_FACET = 0
FACETS = (0, 1)

TO_ENDPOINT, FROM_ENDPOINT = 0, 5
"""`sub_type` of trace events; to-endpoint's trace_observation_point is 101 all the same."""

TRACE_POINTS = {TO_ENDPOINT: "to-endpoint", FROM_ENDPOINT: "from-endpoint"}
"""Names of the points, as the field writes them."""

POLICY_DROPS = (DropReason.POLICY_DENIED, DropReason.POLICY_DENY)

DROPPED, AUDIT = 2, 4

REPLY = 2
"""`ct_state` of a response."""

_REASONS = np.arange(256, dtype=np.uint8)
_REASONS[220:] = DropReason.POLICY_DENIED
_REASONS[DropReason.CT_QUOTA_EXCEEDED] = DropReason.CT_MAP_INSERTION_FAILED
_REASONS[DropReason.PACKET_TOO_LARGE] = 136  # "Fragmentation needed" to Hubble's CLI, whatever its enum calls it
HUBBLE_REASON: Array = _REASONS
"""Our drop reason -> the nearest that Hubble's enum has: its clients know no numbers from 206 on."""


def event_types(columns: Columns, facet: int) -> tuple[Array, Array]:
    """(type, sub_type) of every row's facet; type 0 where the row has no such facet."""
    kind, reason = columns["kind"], HUBBLE_REASON[columns["drop_reason"]]
    dropped = columns["verdict"] == DROPPED
    types = np.zeros(len(kind), np.uint8)
    changed = kind == Kind.VERDICT_CHANGE
    refused = (kind == Kind.DROP) | (changed & dropped)
    allowed = (kind == Kind.NEW) | (changed & ~dropped)
    decided = allowed & ((columns["policy"] != 0) | (columns["verdict"] == AUDIT))
    if facet == 0:
        types[refused] = DROP
        types[allowed | (kind == Kind.UPDATE) | (kind == Kind.CLOSE)] = TRACE
        types[decided] = POLICY_VERDICT
        types[(kind == Kind.HTTP) | is_dns(columns)] = L7
        types[kind == Kind.TLS] = TRACE
        types[(kind == Kind.TLS) & dropped] = DROP
    else:
        types[refused & np.isin(reason, POLICY_DROPS)] = POLICY_VERDICT
        types[decided] = TRACE
    points = np.where(columns["direction"] == Direction.INGRESS, TO_ENDPOINT, FROM_ENDPOINT)
    subs = np.where(types == TRACE, points, np.where(types == DROP, reason, 0)).astype(np.uint8)
    return types, subs


def replies(columns: Columns) -> tuple[Array, Array]:
    """(is_reply, is known) of every row.

    A record tells of a connection and has its opener as the source, whatever packet raised it: it is no reply. Of a
    dropped packet it is not known. Only a response is a row of its own.
    """
    known = (columns["verdict"] != DROPPED) | (columns["kind"] == Kind.HTTP) | is_dns(columns)
    return responses(columns), known


def responses(columns: Columns) -> Array:
    """Rows that are HTTP responses or DNS answers: source is the server."""
    found: Array = ((columns["kind"] == Kind.HTTP) & (columns["ct_state"] == REPLY)) | (
        columns["kind"] == Kind.DNS_ANSWER
    )
    return found


def is_dns(columns: Columns) -> Array:
    """Rows that are DNS questions or answers."""
    found: Array = (columns["kind"] == Kind.DNS_QUERY) | (columns["kind"] == Kind.DNS_ANSWER)
    return found
