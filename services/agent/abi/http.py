"""HTTP policy (`bpf/lib/http_tables.h`, `http_grammar.h`, `http_state.h`): tables that the kernel walks, and what it
remembers of a connection.

Three tables are written by the agent: the grammar of HTTP/1.x heads as a byte automaton (`http_grammar`, the same for
all), the policy automaton in two generations (`http_tables`), and `http_config`, which says what of them is valid.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

from services.agent.abi.layout import Struct

MAX_RULESETS = 1024
MAX_STATES = 8192
COLUMNS = 128
ACCEPT = 0x8000
"""Bit of a next state: the target (or host) read so far is allowed if it ends here."""
DENY_ALL, ALLOW_ALL, FIRST_STATE = 0, 1, 2

GRAMMAR_STATES = 128
GRAMMAR_COLUMNS = 256
GENERATIONS = 2

TABLE_SIZE = 2 * MAX_RULESETS + 2 * MAX_STATES * COLUMNS
GRAMMAR_SIZE = 2 * GRAMMAR_STATES * GRAMMAR_COLUMNS


class HttpAction(IntEnum):
    """`enum http_action`: what the kernel does with a byte beside going to the next state."""

    NONE = 0
    METHOD = 1
    METHOD_END = 2
    PATH = 3
    ESCAPE_FIRST = 4
    ESCAPE_SECOND = 5
    """The next state names the row in which the decoded byte is looked up."""
    ESCAPE_KEPT = 6
    QUERY = 7
    ABSOLUTE = 8
    ROOT = 9
    LINE_10 = 10
    LINE_11 = 11
    HOST_NAME = 12
    HOST = 13
    LENGTH_NAME = 14
    LENGTH_DIGIT = 15
    CODING_NAME = 16
    HEAD_END = 17
    CHUNK_DIGIT = 18
    CHUNK_LINE = 19
    DATA = 20
    MESSAGE_END = 21
    REFUSE = 22
    REFUSE_TLS = 23
    REFUSE_HTTP2 = 24


class HttpPhase(IntEnum):
    """`enum http_phase`: the grammar states that the kernel knows by name; all others are the table's business."""

    DEAD = 0
    START = 1
    BODY = 2
    CHUNK_DATA = 3
    CHUNK_SIZE = 4
    CHUNK_END = 5
    TRAILER = 6


class HttpMode(IntEnum):
    """`enum http_mode`: how much of a connection is understood."""

    FOLLOWED = 0
    REPLAYING = 1
    """Bytes that had passed come again, because the server lost them; they must turn out to be the same."""
    ANSWERED = 2
    """Denied: the kernel has answered for the server, which is gone."""
    RESET = 3
    """Refused in a way that has no HTTP answer: both sides were reset."""
    UNKNOWN = 4
    """Not HTTP, seen while no HTTP policy held; refused as soon as one does."""


class HttpFlags(IntFlag):
    """`HTTP_F_*`: what the current request's head has shown."""

    LENGTH = 1
    CODING = 2
    VERSION_10 = 4
    HOST = 8
    ABSOLUTE = 16
    PENDING = 32
    """The target alone does not decide, the host must."""
    DECIDED = 64


class HttpConfig(Struct):
    """`struct http_config`, 16 bytes. `grammar` 0 or another than a connection began with: it is not understood."""

    _fields_ = [
        ("generation", ctypes.c_uint32),
        ("oldest", ctypes.c_uint32),
        ("grammar", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    ]


class HttpParse(Struct):
    """`struct http_parse`, 40 bytes: where in the grammar the stream is; `seq` is the next byte."""

    _fields_ = [
        ("remain", ctypes.c_uint64),
        ("seq", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("head", ctypes.c_uint32),
        ("state", ctypes.c_uint16),
        ("ruleset", ctypes.c_uint16),
        ("line", ctypes.c_uint16),
        ("path_len", ctypes.c_uint16),
        ("phase", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("digits", ctypes.c_uint8),
        ("escape", ctypes.c_uint8),
        ("method_len", ctypes.c_uint8),
        ("begun", ctypes.c_uint8),
        ("pad", ctypes.c_uint16),
    ]


class HttpConn(Struct):
    """`struct http_conn`, 312 bytes, keyed by the server's conntrack key."""

    _fields_ = [
        ("version", ctypes.c_uint64),
        ("salt", ctypes.c_uint64),
        ("hash", ctypes.c_uint64),
        ("replay_hash", ctypes.c_uint64),
        ("now", HttpParse),
        ("snap", HttpParse),
        ("replay_end", ctypes.c_uint32),
        ("body_start", ctypes.c_uint32),
        ("body_end", ctypes.c_uint32),
        ("isn", ctypes.c_uint32),
        ("answer_seq", ctypes.c_uint32),
        ("grammar", ctypes.c_uint32),
        ("mode", ctypes.c_uint8),
        ("strikes", ctypes.c_uint8),
        ("replayable", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("acked", ctypes.c_uint32),
        ("method", ctypes.c_uint8 * 16),
        ("path", ctypes.c_uint8 * 136),
        ("pad1", ctypes.c_uint64),
    ]
