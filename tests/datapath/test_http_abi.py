"""C and Python agree on HTTP's numbers and layouts."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from enum import IntEnum, IntFlag

import pytest

from services.agent.abi import events, http
from services.agent.abi.layout import Struct
from services.agent.datapath.program import SOURCE_DIR
from tests.datapath.test_abi import c_enum, prefixed
from tests.datapath.test_layout import DESCRIBE


@pytest.mark.parametrize(
    ("header", "name", "enum", "prefix"),
    [
        ("http_grammar.h", "http_phase", http.HttpPhase, "HTTP_PHASE_"),
        ("http_grammar.h", "http_action", http.HttpAction, "HTTP_ACT_"),
        ("http_state.h", "http_mode", http.HttpMode, "HTTP_"),
        ("http_state.h", "http_flags", http.HttpFlags, "HTTP_F_"),
        ("http_state.h", "http_begun", http.HttpBegun, "HTTP_BEGUN_"),
        ("http_state.h", "http_traces", http.HttpTraces, "HTTP_TRACES_"),
        ("http_state.h", "http_waiting", http.HttpWaiting, "HTTP_"),
        ("events.h", "http_event_subtype", events.HttpSubtype, "HTTP_EVENT_"),
    ],
)
def test_enums(header: str, name: str, enum: type[IntEnum] | type[IntFlag], prefix: str) -> None:
    assert c_enum(header, name) == prefixed(enum, prefix)


@pytest.mark.parametrize(
    ("header", "name", "value"),
    [
        ("http_tables.h", "HTTP_RULESETS", http.MAX_RULESETS),
        ("http_tables.h", "HTTP_STATES", http.MAX_STATES),
        ("http_tables.h", "HTTP_COLUMNS", http.COLUMNS),
        ("http_tables.h", "HTTP_ACCEPT", http.ACCEPT),
        ("http_tables.h", "HTTP_RULESETS", http.VISIBLE + 1),
        ("http_tables.h", "HTTP_DENY_ALL", http.DENY_ALL),
        ("http_grammar.h", "HTTP_GRAMMAR_STATES", http.GRAMMAR_STATES),
        ("http_grammar.h", "HTTP_GRAMMAR_VIEWS", http.GRAMMAR_VIEWS),
    ],
)
def test_constants(header: str, name: str, value: int) -> None:
    found = re.search(rf"#define {name} (\w+)", (SOURCE_DIR / "lib" / header).read_text())
    assert found
    assert int(found[1], 0) == value


LAYOUTS: dict[str, type[Struct]] = {
    "lay_http_parse": http.HttpParse,
    "lay_http_flow": http.HttpFlow,
    "http_conns": http.HttpConn,
    "http_config": http.HttpConfig,
    "lay_http_memo": http.HttpMemo,
}


def offsets(layout: type[ctypes.Structure], base: int = 0) -> list[tuple[str, int]]:
    """Fields and where they begin, nested structs opened."""
    found: list[tuple[str, int]] = []
    for name, kind, *_ in layout._fields_:
        at = base + getattr(layout, name).offset
        if isinstance(kind, type) and issubclass(kind, ctypes.Structure):
            found += offsets(kind, at)
        else:
            found.append((name, at))
    return found


@pytest.mark.root
def test_layouts() -> None:
    script = DESCRIBE.replace('"layout_check.c"', '"http_layout_check.c"')
    done = subprocess.run([sys.executable, "-c", script, *LAYOUTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    for table, layout in LAYOUTS.items():
        theirs = [(name, offset) for name, offset, _ in described[table]["leaf"]]
        assert theirs == offsets(layout), table
