"""Kernel events (`bpf/lib/events.h`): fixed-size records in two rings, read as numpy arrays.

A ring holds one record size, so that a batch is one strided array: 8 bytes of ring header (length with BUSY and
DISCARD bits, page offset), then the record. Sizes are chosen so that header + record is a power of two.
New fields go at the end into the padding, and `version` goes up.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

EVENT_VERSION = 2

LANE_BYTES_MIN = 1 << 15
"""Of a CPU's lane of connection events, at least."""

RING_BUSY = 1 << 31
RING_DISCARD = 1 << 30


class EventType(IntEnum):
    """`enum event_type`."""

    NEW = 1
    """A connection was allowed; `rule_id` says by what."""
    DROP = 2
    """A packet was dropped; `drop_reason` says why, `rule_id` which deny rule (0: default deny)."""
    UPDATE = 3
    """A live connection's counters, at most every few seconds."""
    CLOSE = 4
    """A connection ended (FIN both ways, RST) or was collected; last counters."""
    VERDICT_CHANGE = 5
    """An established connection met a changed policy; the new verdict is in `drop_reason` (0: allowed)."""
    HTTP_REQUEST = 6
    """A request met HTTP policy (http ring only)."""
    DNS_QUERY = 9
    """A pod asked for a name, or was refused to (name ring only)."""
    DNS_ANSWER = 10
    """It was answered; what the answer taught is known to the kernel by then (name ring only)."""
    TLS_HELLO = 11
    """A TLS client named its server, or was refused (name ring only)."""


class HttpSubtype(IntEnum):
    """`enum http_event_subtype`."""

    REQUEST = 0
    """Refused, or without a response that could be told to be its."""
    ANSWERED = 1
    """With its response: `status` and `latency_us`."""


class EventFlags(IntFlag):
    """`enum event_flags`."""

    AUDIT = 1
    """Passed, though policy refuses it: `drop_reason` says why it would have been dropped."""


class CtState(IntEnum):
    """`enum ct_status`."""

    NEW = 0
    ESTABLISHED = 1
    REPLY = 2
    RELATED = 3


HEADER_FIELDS = [
    ("type", "u1"),
    ("subtype", "u1"),
    ("version", "u1"),
    ("flags", "u1"),
    ("endpoint_id", "<u2"),
    ("cpu", "<u2"),
    ("time_ns", "<u8"),  # CLOCK_MONOTONIC
]

CONNECTION_FIELDS = [
    ("saddr", "u1", (16,)),
    ("daddr", "u1", (16,)),
    ("sport", ">u2"),  # ICMP: type in sport, code in dport
    ("dport", ">u2"),
    ("protocol", "u1"),
    ("tcp_flags", "u1"),
    ("direction", "u1"),  # model.verdict.Direction: 1 ingress, 2 egress, as seen by endpoint_id
    ("ct_state", "u1"),
    ("src_identity", "<u4"),
    ("dst_identity", "<u4"),
    ("rule_id", "<u4"),
    ("policy_revision", "<u4"),
    ("drop_reason", "u1"),
    ("match_type", "u1"),  # Hubble policy_match_type: 0 none, 1 L3, 2 L3-L4, 3 L4, 4 all, 5 L3-proto, 6 proto
    ("pad0", "<u2"),
    ("service_id", "<u4"),  # the Service that the client addressed, 0 = none
]

FLOW_EVENT = np.dtype(
    [
        *HEADER_FIELDS,
        *CONNECTION_FIELDS,
        ("packets", "<u4", (2,)),  # [0] original direction, [1] reply
        ("bytes", "<u8", (2,)),
        ("rtt_us", "<u4"),
        ("retransmits", "<u4"),
        ("duration_us", "<u4"),
        ("l7_ruleset", "<u4"),
    ]
)
"""`struct flow_event`, 120 bytes: original direction's addresses, whatever packet raised it (a DROP: the packet's)."""

HTTP_EVENT = np.dtype(
    [
        *HEADER_FIELDS,
        *CONNECTION_FIELDS,
        ("http_version", "u1"),  # 10, 11; 0 = not known
        ("method_len", "u1"),
        ("status", "<u2"),  # of the response; the kernel's own answer (403) with a drop_reason; 0 = none
        ("path_len", "<u2"),  # of the whole path; more than 136 = cut
        ("traced", "<u2"),  # 1: trace_id, parent_id and trace_flags were written
        ("latency_us", "<u4"),  # since the request's head was complete: of the response's head, or of this record
        ("l7_ruleset", "<u4"),
        ("method", "S16"),
        ("path", "S136"),
        ("trace_id", "<u8", (2,)),  # big-endian numbers: of another byte order, records would be copied field by field
        ("parent_id", "<u8"),
        ("trace_flags", "u1"),
        ("pad2", "u1", (7,)),
    ]
)
"""`struct http_event`, 280 bytes; the last four are `struct http_trace`."""

NAME_EVENT = np.dtype(
    [
        *HEADER_FIELDS,
        *CONNECTION_FIELDS,
        ("ttl", "<u4"),  # seconds, the lowest of the answer
        ("latency_us", "<u4"),  # from question to answer
        ("l7_ruleset", "<u4"),
        ("id", "<u2"),
        ("qtype", "<u2"),
        ("answers", "<u2"),  # addresses in the answer; more than 8: the rest is left out here
        ("rcode", "u1"),
        ("name_len", "u1"),
        ("aliases_len", "<u2"),  # 0: `aliases` was not written
        ("pad1", "u1", (18,)),
        ("addresses", "u1", (8, 16)),
        ("name", "S256"),
        ("aliases", "V256"),  # that the answer leads over: names, each with a final dot and a zero
    ]
)
"""`struct name_event`, 760 bytes: the connection in its original direction, whoever speaks."""

assert FLOW_EVENT.itemsize == 120, FLOW_EVENT.itemsize
assert HTTP_EVENT.itemsize == 280, HTTP_EVENT.itemsize
assert NAME_EVENT.itemsize == 760, NAME_EVENT.itemsize

EVENT_LANE = np.dtype(
    [
        ("written", "<u8"),
        ("mask", "<u4"),
        ("first", "<u4"),
        ("base", "<u8"),
        ("pad", "<u8", (5,)),
        ("taken", "<u8"),
        ("pad2", "<u8", (6,)),
    ]
)
"""`struct event_lane`: the head of a CPU's lane, at the place of record number twice the CPU's."""

LANES: dict[str, tuple[np.dtype[Any], int]] = {"events": (FLOW_EVENT, 8 << 20), "http_events": (HTTP_EVENT, 9 << 19)}
"""Maps that hold lanes: their records, and how many bytes they have for all CPUs together unless told otherwise."""


def lane_places(size: int, cpus: int, record: np.dtype[Any] = FLOW_EVENT) -> int:
    """Records of each CPU's lane in a buffer of `size` bytes, a power of two."""
    share = max(size // cpus, LANE_BYTES_MIN) // record.itemsize
    return 1 << (share.bit_length() - 1)


def lane_heads(places: int, cpus: int, record: np.dtype[Any] = FLOW_EVENT) -> dict[int, bytes]:
    """Index in the map -> the head of an empty lane."""
    heads = {}
    for cpu in range(cpus):
        head = np.zeros(1, EVENT_LANE)
        head["mask"], head["first"] = places - 1, 2 * cpus + cpu * places
        heads[2 * cpu] = head.tobytes().ljust(record.itemsize, b"\0")
    return heads
