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
VISIBLE = MAX_RULESETS - 1
"""The rule set of ports whose requests are told without any policy."""
MAX_STATES = 8192
COLUMNS = 128
ACCEPT = 0x8000
"""Bit of a next state: the target (or host) read so far is allowed if it ends here."""
DENY_ALL, ALLOW_ALL, FIRST_STATE = 0, 1, 2

MAX_CONDITIONS = 16
"""Headers or values that the rules for one path may look at: bits of a u16."""
MAX_ALTERNATIVES = 31
"""Ways to combine them: what fits into the columns of control characters."""
RESULT_ROOT = 2
"""Column of a line's result that names the state in which the next line begins (`calc/http_fields.py`)."""

GRAMMAR_STATES = 256
GRAMMAR_VIEWS = 2
"""The same states twice: where no rule looks at fields, and where one does and all of them go to the automaton."""
GRAMMAR_COLUMNS = 256
GENERATIONS = 2

TABLE_SIZE = 2 * MAX_RULESETS + 2 * MAX_STATES * COLUMNS
GRAMMAR_SIZE = 2 * GRAMMAR_VIEWS * GRAMMAR_STATES * GRAMMAR_COLUMNS


class HttpAction(IntEnum):
    """`enum http_action`: what the kernel does with a byte beside going to the next state."""

    REFUSE = 0
    NONE = 1
    FEED = 2
    """One step of the policy automaton."""
    METHOD_END = 3
    TARGET = 4
    """The path of an absolute target begins."""
    ESCAPE_FIRST = 5
    ESCAPE_SECOND = 6
    """The next state names the row in which the decoded byte is looked up."""
    ESCAPE_KEPT = 7
    """There: the escape goes on as it was sent."""
    QUERY = 8
    ABSOLUTE = 9
    ROOT = 10
    """An absolute target without a path."""
    HEAD_END = 11
    LINE_10 = 12
    LINE_11 = 13
    HOST_NAME = 14
    LENGTH_NAME = 15
    LENGTH_DIGIT = 16
    CODING_NAME = 17
    CHUNK_DIGIT = 18
    CHUNK_LINE = 19
    MESSAGE_END = 20
    EMPTY_LINE = 21
    """Before a request."""
    REFUSE_TLS = 22
    REFUSE_HTTP2 = 23
    VALUE = 24
    """Such a value begins."""
    TARGET_END = 25
    LINE_END = 26
    """Of a field, where rules look at fields."""
    FOREIGN = 27
    """A byte beyond ASCII in a value, likewise."""
    UPGRADE_NAME = 28
    """Such a field begins, or goes on with something else than a WebSocket."""
    UPGRADE_VALUE = 29
    """It names a WebSocket."""
    TRACE_NAME = 30
    """The value of a traceparent begins."""


class HttpPhase(IntEnum):
    """`enum http_phase`: the grammar states that the kernel knows by name; all others are the table's business."""

    DEAD = 0
    START = 1
    BODY = 2
    CHUNK_DATA = 3
    CHUNK_SIZE = 4
    CHUNK_END = 5
    TRAILER = 6
    VALUE = 7
    """Of a field that means nothing here: most bytes of most heads."""
    FIELD = 8
    """A line of the head begins."""


class HttpMode(IntEnum):
    """`enum http_mode`: how much of a connection is understood."""

    FOLLOWED = 0
    ANSWERED = 1
    """Denied: the kernel has answered for the server, which is gone."""
    RESET = 2
    """Refused in a way that has no HTTP answer: both sides were reset."""
    UNKNOWN = 3
    """Not HTTP, seen while no HTTP policy held; refused as soon as one does."""


class HttpFlags(IntFlag):
    """`enum http_flags`: what the current request's head has shown."""

    LENGTH = 1
    CODING = 2
    VERSION_10 = 4
    HOST = 8
    ABSOLUTE = 16
    PENDING = 32
    """The target alone does not decide, the host must."""
    DECIDED = 64
    LINE = 128


class HttpBegun(IntFlag):
    """`enum http_begun`: what is known of the current request beside its flags."""

    RULES = 1
    """Generation, rule set and state are set."""
    UPGRADE = 2
    """It names an upgrade ..."""
    WEBSOCKET = 4
    """... to a WebSocket ..."""
    CONFUSED = 8
    """... and to something else."""


class HttpTraces(IntEnum):
    """`enum http_traces`: how many fields of the current request say which trace it belongs to."""

    NONE = 0
    ONE = 1
    MANY = 2
    """They contradict one another: as if there were none."""


class HttpVisibleKey(Struct):
    """`struct http_visible_key`, 8 bytes: a pod's port; `port` in network order, `direction` as policy has it."""

    _fields_ = [
        ("endpoint", ctypes.c_uint32),
        ("port", ctypes.c_uint16),
        ("direction", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
    ]


class HttpConfig(Struct):
    """`struct http_config`, 24 bytes. `grammar` 0 or another than a connection began with: it is not understood.
    `traces` 1: traceparent fields are looked at."""

    _fields_ = [
        ("generation", ctypes.c_uint32),
        ("oldest", ctypes.c_uint32),
        ("grammar", ctypes.c_uint32),
        ("traces", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
    ]


class HttpParse(Struct):
    """`struct http_parse`, 56 bytes: where in the grammar the stream is; `seq` is the next byte."""

    _fields_ = [
        ("hash", ctypes.c_uint64),
        ("remain", ctypes.c_uint64),
        ("seq", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("head", ctypes.c_uint32),
        ("line_seq", ctypes.c_uint32),
        ("path_seq", ctypes.c_uint32),
        ("state", ctypes.c_uint16),
        ("ruleset", ctypes.c_uint16),
        ("path_len", ctypes.c_uint16),
        ("phase", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("digits", ctypes.c_uint8),
        ("escape", ctypes.c_uint8),
        ("method_len", ctypes.c_uint8),
        ("begun", ctypes.c_uint8),
        ("method_saved", ctypes.c_uint8),
        ("path_saved", ctypes.c_uint8),
        ("root", ctypes.c_uint16),
        ("decided", ctypes.c_uint16),
        ("met", ctypes.c_uint16),
    ]


class HttpFlow(Struct):
    """`struct http_flow`, 200 bytes: what is copied, worked on and published as a whole."""

    _fields_ = [
        ("hash", ctypes.c_uint64),
        ("snap_hash", ctypes.c_uint64),
        ("mark_digest", ctypes.c_uint64),
        ("now", HttpParse),
        ("snap", HttpParse),
        ("mark_seq", ctypes.c_uint32),
        ("body_start", ctypes.c_uint32),
        ("body_end", ctypes.c_uint32),
        ("holes", ctypes.c_uint32 * 8),
        ("answer_seq", ctypes.c_uint32),
        ("answer_end", ctypes.c_uint32),
        ("grammar", ctypes.c_uint32),
        ("mode", ctypes.c_uint8),
        ("strikes", ctypes.c_uint8),
        ("snapped", ctypes.c_uint8),
        ("marked", ctypes.c_uint8),
        ("traces", ctypes.c_uint8),
        ("trace_saved", ctypes.c_uint8),
        ("trace_at", ctypes.c_uint16),
    ]


class HttpWaiting(IntEnum):
    """`enum http_waiting`: is there a request without its response?"""

    WAITS_NOT = 0
    WAITS = 1
    TAKEN = 2
    """By a program that is writing its event."""


class HttpAsked(Struct):
    """`struct http_asked`, 48 bytes: a request that was allowed and is not answered yet."""

    _fields_ = [
        ("complete_ns", ctypes.c_uint64),
        ("waiting", ctypes.c_uint64),
        ("rule_id", ctypes.c_uint32),
        ("src_identity", ctypes.c_uint32),
        ("policy_revision", ctypes.c_uint32),
        ("service_id", ctypes.c_uint32),
        ("ruleset", ctypes.c_uint16),
        ("path_len", ctypes.c_uint16),
        ("http_version", ctypes.c_uint8),
        ("method_len", ctypes.c_uint8),
        ("match_type", ctypes.c_uint8),
        ("pipelined", ctypes.c_uint8),
        ("audited", ctypes.c_uint8),
        ("upgrade", ctypes.c_uint8),
        ("traced", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("line_seq", ctypes.c_uint32),
    ]


class HttpTrace(Struct):
    """`struct http_trace`, 32 bytes: a request's place in a trace (W3C Trace Context)."""

    _fields_ = [
        ("trace_id", ctypes.c_uint8 * 16),
        ("parent_id", ctypes.c_uint8 * 8),
        ("trace_flags", ctypes.c_uint8),
        ("pad2", ctypes.c_uint8 * 7),
    ]


class HttpConn(Struct):
    """`struct http_conn`, 688 bytes, keyed by the server's conntrack key."""

    _fields_ = [
        ("version", ctypes.c_uint64),
        ("acked", ctypes.c_uint32),
        ("first", ctypes.c_uint32),
        ("opened", ctypes.c_uint32),
        ("watched", ctypes.c_uint8),
        ("tunnel", ctypes.c_uint8),
        ("fins", ctypes.c_uint8),
        ("cut", ctypes.c_uint8),
        ("heard_seq", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("heard_ns", ctypes.c_uint64),
        ("flow", HttpFlow),
        ("method", ctypes.c_uint8 * 16),
        ("path", ctypes.c_uint8 * 136),
        ("asked", HttpAsked),
        ("asked_method", ctypes.c_uint8 * 16),
        ("asked_path", ctypes.c_uint8 * 136),
        ("asked_trace", HttpTrace),
        ("trace_raw", ctypes.c_uint8 * 64),
    ]


class HttpMemo(Struct):
    """`struct http_memo`, 704 bytes: a head that was read before, and what follows from it. `length` 0: none."""

    _fields_ = [
        ("tag", ctypes.c_uint64),
        ("line_hash", ctypes.c_uint64),
        ("length", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("grammar", ctypes.c_uint32),
        ("ruleset", ctypes.c_uint16),
        ("path_len", ctypes.c_uint16),
        ("http_version", ctypes.c_uint8),
        ("method_len", ctypes.c_uint8),
        ("upgrade", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("traced_at", ctypes.c_uint16),
        ("pad2", ctypes.c_uint8 * 2),
        ("method", ctypes.c_uint8 * 16),
        ("path", ctypes.c_uint8 * 136),
        ("head", ctypes.c_uint8 * 512),
    ]


assert ctypes.sizeof(HttpMemo) == 704, ctypes.sizeof(HttpMemo)
assert ctypes.sizeof(HttpParse) == 56, ctypes.sizeof(HttpParse)
assert ctypes.sizeof(HttpFlow) == 200, ctypes.sizeof(HttpFlow)
assert ctypes.sizeof(HttpAsked) == 48, ctypes.sizeof(HttpAsked)
assert ctypes.sizeof(HttpConn) == 688, ctypes.sizeof(HttpConn)
