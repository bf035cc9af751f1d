"""Connection tracking (`bpf/lib/conntrack.h`): one entry per endpoint and connection, the key as the endpoint sees it.

ctypes for single entries, numpy dtypes for sweeps over the whole map; both are checked against the C side.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

import numpy as np

from services.agent.abi.layout import Address, Struct


class CtScope(IntEnum):
    """`enum ct_scope`."""

    CONNECTION = 0
    SERVICE = 1
    """The tuple that a client addressed -> the backend that was chosen."""
    HAIRPIN = 2
    """A pod that reaches itself through its own Service, as the server's side sees it."""


class CtFlags(IntFlag):
    """`enum ct_flags`."""

    SEEN_REPLY = 1
    FIN_ORIGINAL = 2
    FIN_REPLY = 4
    RST = 8
    DENIED = 16
    """The current policy refuses it; replies still pass."""
    CLOSED = 32
    """CLOSE was emitted."""
    HTTP = 64
    """Was under an L7 rule set once: HTTP follows it, so that rules may come back."""
    AUDITED = 128
    """The current policy refuses it, but the endpoint is only audited."""
    NORTH_SOUTH = 1024
    """Opened through a Service from outside: answers leave with its address."""
    UNREAD = 512
    """Data came with the SYN that no HTTP program has read."""
    SETTLED = 256
    """Has come to stay: see `ct_room`."""


class CtKey(Struct):
    """`struct ct_key`, 40 bytes. Ports in network order; ICMP echo: the pinging side has the id, the other 0."""

    _fields_ = [
        ("local", Address),
        ("remote", Address),
        ("local_port", ctypes.c_uint16),
        ("remote_port", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("scope", ctypes.c_uint8),
        ("pad", ctypes.c_uint16),
    ]


class CtEntry(Struct):
    """`struct ct_entry`, 128 bytes. Times in ns of CLOCK_MONOTONIC; index 0 of pairs is the original direction."""

    _fields_ = [
        ("created_ns", ctypes.c_uint64),
        ("expires_ns", ctypes.c_uint64),
        ("last_event", ctypes.c_uint32),
        ("queue_number", ctypes.c_uint32),
        ("bytes", ctypes.c_uint64 * 2),
        ("handshake_ns", ctypes.c_uint64),
        ("packets", ctypes.c_uint32 * 2),
        ("seq_end", ctypes.c_uint32 * 2),
        ("rule_id", ctypes.c_uint32),
        ("l7_ruleset", ctypes.c_uint32),
        ("self_identity", ctypes.c_uint32),
        ("peer_identity", ctypes.c_uint32),
        ("policy_revision", ctypes.c_uint32),
        ("service_id", ctypes.c_uint32),
        ("rtt_us", ctypes.c_uint32),
        ("retransmits", ctypes.c_uint32),
        ("endpoint_id", ctypes.c_uint16),
        ("peer_endpoint", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("direction", ctypes.c_uint8),
        ("tcp_flags", ctypes.c_uint8),
        ("match_type", ctypes.c_uint8),
        ("drop_reason", ctypes.c_uint8),
        ("nat_port", ctypes.c_uint16),
        ("nat_address", Address),
        ("nat_slot", ctypes.c_uint16),
        ("queue_cpu", ctypes.c_uint16),
    ]


CT_KEY = np.dtype(
    [
        ("local", "u1", (16,)),
        ("remote", "u1", (16,)),
        ("local_port", "<u2"),
        ("remote_port", "<u2"),
        ("protocol", "u1"),
        ("scope", "u1"),
        ("pad", "<u2"),
    ]
)
CT_ENTRY = np.dtype(
    [
        ("created_ns", "<u8"),
        ("expires_ns", "<u8"),
        ("last_event", "<u4"),
        ("queue_number", "<u4"),
        ("bytes", "<u8", (2,)),
        ("handshake_ns", "<u8"),
        ("packets", "<u4", (2,)),
        ("seq_end", "<u4", (2,)),
        ("rule_id", "<u4"),
        ("l7_ruleset", "<u4"),
        ("self_identity", "<u4"),
        ("peer_identity", "<u4"),
        ("policy_revision", "<u4"),
        ("service_id", "<u4"),
        ("rtt_us", "<u4"),
        ("retransmits", "<u4"),
        ("endpoint_id", "<u2"),
        ("peer_endpoint", "<u2"),
        ("flags", "<u2"),
        ("direction", "u1"),
        ("tcp_flags", "u1"),
        ("match_type", "u1"),
        ("drop_reason", "u1"),
        ("nat_port", "<u2"),
        ("nat_address", "u1", (16,)),
        ("nat_slot", "<u2"),
        ("queue_cpu", "<u2"),
    ]
)
