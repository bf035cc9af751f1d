"""Writing HTTP tables into the kernel so that every request meets one generation whole.

    oldest = active -> nobody runs with the spare one any more -> write the spare one -> generation = spare

The wait is the kernel's own: membarrier returns when every program that was running has ended.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from services.agent.abi.http import GENERATIONS, MAX_STATES, TABLE_SIZE, HttpConfig
from services.agent.calc.http import HttpTables
from services.agent.calc.http_grammar import build, fingerprint
from services.common.errors import Internal

_SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL = 1
_FIRST = bytes(4)


class TableMap(Protocol):
    """What is needed of a pinned array map."""

    def lookup(self, key: bytes) -> bytes | None: ...
    def update(self, key: bytes, value: bytes) -> None: ...


def wait_for_programs() -> None:
    """Return when every eBPF program that runs now has ended. Raises Internal where the kernel cannot tell."""
    number = _SYS_MEMBARRIER.get(os.uname().machine)
    if number is None:
        raise Internal(f"membarrier's number is not known for {os.uname().machine}")
    if ctypes.CDLL(None, use_errno=True).syscall(number, _MEMBARRIER_GLOBAL, 0, 0):
        code = ctypes.get_errno()
        raise Internal(f"membarrier: {errno.errorcode.get(code, code)}")


class HttpTableWriter:
    """The one writer of `http_grammar`, `http_tables` and `http_config`."""

    def __init__(self, maps: Mapping[str, TableMap], *, traces: bool = True) -> None:
        """`traces`: whether `traceparent` fields are looked at."""
        self._traces = int(traces)
        self._grammar, self._tables, self._config = (maps[n] for n in ("http_grammar", "http_tables", "http_config"))

    def write(self, tables: HttpTables) -> None:
        """Install a generation: requests that begin from now on are decided by it. The same tables again cost a
        comparison."""
        config = HttpConfig.unpack(self._config.lookup(_FIRST) or b"")
        if config.traces != self._traces:
            config.traces = self._traces
            self._config.update(_FIRST, config.pack())
        self._install_grammar(config)
        image = table_image(tables)
        if config.generation and self._tables.lookup(_slot(config.generation)) == image:
            return
        config.oldest = config.generation
        config.seed = config.seed or secrets.randbits(64) | 1
        self._config.update(_FIRST, config.pack())
        wait_for_programs()
        following = (config.generation + 1) & 0xFFFFFFFF or GENERATIONS  # 0 means that nothing was written yet
        self._tables.update(_slot(following), image)
        config.generation = following
        self._config.update(_FIRST, config.pack())

    def _install_grammar(self, config: HttpConfig) -> None:
        """Another grammar than the one in force (an agent of another version wrote it): connections that were parsed
        by that one are not understood from now on."""
        table = build()
        wanted = fingerprint(table)
        if config.grammar == wanted:
            return
        config.grammar = 0
        self._config.update(_FIRST, config.pack())
        wait_for_programs()
        self._grammar.update(_FIRST, table.astype("<u2").tobytes())
        config.grammar = wanted
        self._config.update(_FIRST, config.pack())


def table_image(tables: HttpTables) -> bytes:
    """`struct http_table`: the starts, then all rows; rows that nothing leads to are zero."""
    if tables.states > MAX_STATES:
        raise Internal(f"{tables.states} states in a table of {MAX_STATES}")
    image = np.zeros(TABLE_SIZE // 2, "<u2")
    image[: len(tables.starts)] = tables.starts
    image[len(tables.starts) : len(tables.starts) + tables.rows.size] = tables.rows.ravel()
    return image.tobytes()


def _slot(generation: int) -> bytes:
    return (generation % GENERATIONS).to_bytes(4, "little")
