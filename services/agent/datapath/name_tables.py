"""Writing the tables of names so that every packet meets one generation whole, and giving known names new identities.

    nobody runs with the spare generation any more -> write it -> generation = spare -> wait -> names that are known

After the flip the kernel classifies names by the new table. Names that were learned before are gone through once the
policy entries of their new identities are there; the kernel and this writer then agree on every one of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from services.agent.abi.names import ACCEPT, COLUMNS, GENERATIONS, LETTERS, MAX_STATES, FqdnName, NamesConfig
from services.agent.calc.names import NameTable
from services.agent.datapath.http_tables import wait_for_programs
from services.common.errors import Internal

_FIRST = bytes(4)
NANOSECONDS = 1_000_000_000
Classify = Callable[[str], int]
"""Canonical name -> identity of the selectors that match it, 0 = none."""


class TableMap(Protocol):
    """What is needed of a pinned map."""

    def lookup(self, key: bytes) -> bytes | None: ...
    def update(self, key: bytes, value: bytes) -> None: ...
    def items(self) -> Iterable[tuple[bytes, bytes]]: ...


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long what is learned counts: at least `min_ttl`, and `grace` longer than its TTL says; seconds."""

    min_ttl: float = 0
    grace: float = 10


class NameTableWriter:
    """The one writer of `names_config` and `name_tables`, and of the identities in `fqdn_names`."""

    def __init__(self, maps: Mapping[str, TableMap], lifetimes: Lifetimes | None = None) -> None:
        self._config, self._tables, self._names = (maps[n] for n in ("names_config", "name_tables", "fqdn_names"))
        self._lifetimes = lifetimes or Lifetimes()

    def write(self, table: NameTable) -> None:
        """Install a generation. The same table again costs a comparison."""
        config = self._configured()
        image = table_image(table)
        if config.generation and self._tables.lookup(_slot(config.generation)) == image:
            self._config.update(_FIRST, config.pack())
            return
        wait_for_programs()
        following = (config.generation + 1) & 0xFFFFFFFF or GENERATIONS  # 0 means that nothing was written yet
        self._tables.update(_slot(following), image)
        config.generation = following
        self._config.update(_FIRST, config.pack())

    def classify(self, identity: Classify) -> int:
        """Give every name that is known its identity; how many had another one."""
        wait_for_programs()
        moved = 0
        for key, raw in list(self._names.items()):
            entry = FqdnName.unpack(raw)
            wanted = identity(bytes(entry.name)[: entry.length].decode("latin-1"))
            if wanted != entry.identity:
                entry.identity = wanted
                self._names.update(key, entry.pack())
                moved += 1
        return moved

    def _configured(self) -> NamesConfig:
        """The configuration in force with our lifetimes. The seed stays: hashes in maps were made with it."""
        config = NamesConfig.unpack(self._config.lookup(_FIRST) or bytes(32))
        if not config.seed:
            config.seed = secrets.randbits(64) | 1
        config.min_ttl_ns = int(self._lifetimes.min_ttl * NANOSECONDS)
        config.grace_ns = int(self._lifetimes.grace * NANOSECONDS)
        return config


def table_image(table: NameTable) -> bytes:
    """`struct name_table`; rows that nothing leads to are zero."""
    if len(table.rows) > MAX_STATES:
        raise Internal(f"{len(table.rows)} states in a table of names of {MAX_STATES}")
    columns = bytearray(256)
    for at, letter in enumerate(LETTERS):
        columns[ord(letter)] = columns[ord(letter.upper())] = at + 1
    rows = np.zeros((MAX_STATES, COLUMNS), "<u2")
    rows[: len(table.rows)] = table.rows
    starts = table.starts.astype("<u2") & ~np.uint16(ACCEPT)
    return starts.tobytes() + table.identities.astype("<u4").tobytes() + bytes(columns) + rows.tobytes()


def _slot(generation: int) -> bytes:
    return (generation % GENERATIONS).to_bytes(4, "little")
