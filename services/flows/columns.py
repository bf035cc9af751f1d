"""The columns of a flow: names, types, wire numbers. One list, used by the agent, the wire and the store.

A batch of flows is one numpy array per column. Columns that name something (`source`, `policy`, ...) hold numbers
into a dictionary (`services.flows.dictionary`); number 0 is "none" in each of them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.pb.ingest.v1 import ingest_pb2 as pb

Array = npt.NDArray[Any]
Columns = dict[str, Array]
"""Column name -> values; all of one length. Missing columns are zeros."""


class Kind(IntEnum):
    """What a row records: the datapath's event types, and the store's own."""

    NEW = 1
    DROP = 2
    UPDATE = 3
    CLOSE = 4
    VERDICT_CHANGE = 5
    HTTP = 6
    DNS_QUERY = 9
    DNS_ANSWER = 10
    TLS = 11
    """A TLS client named its server."""
    LOST = 255
    """No flow: events that were lost here. `drop_reason` = source, `source_port` = cpu, `bytes` = how many,
    `reply_bytes` = nanoseconds between the first and the last."""


WIRE: dict[str, tuple[int, str]] = {
    "time_ns": (pb.TIME_NS, "<i8"),
    "source": (pb.SOURCE, "<u4"),
    "destination": (pb.DESTINATION, "<u4"),
    "policy": (pb.POLICY, "<u4"),
    "service": (pb.SERVICE, "<u4"),
    "http": (pb.HTTP, "<u4"),
    "source_port": (pb.SOURCE_PORT, "<u2"),
    "destination_port": (pb.DESTINATION_PORT, "<u2"),
    "kind": (pb.KIND, "u1"),
    "verdict": (pb.VERDICT, "u1"),
    "direction": (pb.DIRECTION, "u1"),
    "ct_state": (pb.CT_STATE, "u1"),
    "protocol": (pb.PROTOCOL, "u1"),
    "tcp_flags": (pb.TCP_FLAGS, "u1"),
    "drop_reason": (pb.DROP_REASON, "u1"),
    "match_type": (pb.MATCH_TYPE, "u1"),
    "policy_revision": (pb.POLICY_REVISION, "<u4"),
    "packets": (pb.PACKETS, "<u4"),
    "reply_packets": (pb.REPLY_PACKETS, "<u4"),
    "bytes": (pb.BYTES, "<u8"),
    "reply_bytes": (pb.REPLY_BYTES, "<u8"),
    "rtt_us": (pb.RTT_US, "<u4"),
    "retransmits": (pb.RETRANSMITS, "<u4"),
    "duration_us": (pb.DURATION_US, "<u4"),
    "status": (pb.STATUS, "<u2"),
    "process": (pb.PROCESS, "<u4"),
    "trace_high": (pb.TRACE_HIGH, "<u8"),
    "trace_low": (pb.TRACE_LOW, "<u8"),
    "parent_span": (pb.PARENT_SPAN, "<u8"),
    "trace_flags": (pb.TRACE_FLAGS, "u1"),
}
"""Column -> (wire number, type). What travels; the store adds `node`."""

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, (_, kind) in WIRE.items()}
TRACE = ("trace_high", "trace_low", "parent_span", "trace_flags")
"""What a request's `traceparent` says. Batches without such requests do not have these columns."""
STORED: dict[str, np.dtype[Any]] = DTYPES | {"node": np.dtype("<u4")}
ROW_BYTES = sum(kind.itemsize for kind in STORED.values())

DICTIONARY_OF: dict[str, str] = {
    "source": "parties",
    "destination": "parties",
    "policy": "decisions",
    "service": "services",
    "http": "requests",
    "process": "processes",
}
"""Column -> the dictionary that its numbers point into."""


def length(columns: Columns) -> int:
    """Rows of a batch."""
    return len(columns["time_ns"])


def zeros(name: str, rows: int) -> Array:
    """A column of zeros that takes no memory to speak of."""
    return np.broadcast_to(np.zeros((), STORED[name]), rows)


def take(columns: Columns, index: Array) -> Columns:
    """The rows at `index`, copied."""
    return {name: values[index] for name, values in columns.items()}
