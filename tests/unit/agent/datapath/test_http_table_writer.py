"""The swap of generations, step by step: at no moment do two half tables serve one request."""

from __future__ import annotations

import pytest

from services.agent.abi.http import GRAMMAR_SIZE, TABLE_SIZE, HttpConfig
from services.agent.calc.http import compile_rulesets
from services.agent.datapath import http_tables
from services.agent.datapath.http_tables import HttpTableWriter, table_image
from tests.datapath.http_model import Rule


class ArrayMap:
    """An array map that tells a journal of what is written."""

    def __init__(self, name: str, size: int, entries: int, journal: list[tuple[str, int]]) -> None:
        self.name, self.journal = name, journal
        self.values = {i.to_bytes(4, "little"): bytes(size) for i in range(entries)}

    def lookup(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def update(self, key: bytes, value: bytes) -> None:
        assert len(value) == len(self.values[key])
        self.values[key] = value
        self.journal.append((self.name, int.from_bytes(key, "little")))


@pytest.fixture
def journal() -> list[tuple[str, int]]:
    return []


@pytest.fixture
def maps(journal: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> dict[str, ArrayMap]:
    monkeypatch.setattr(http_tables, "wait_for_programs", lambda: journal.append(("wait", 0)))
    sizes = {"http_grammar": (GRAMMAR_SIZE, 1), "http_tables": (TABLE_SIZE, 2), "http_config": (24, 1)}
    return {name: ArrayMap(name, size, entries, journal) for name, (size, entries) in sizes.items()}


def config(maps: dict[str, ArrayMap]) -> HttpConfig:
    return HttpConfig.unpack(maps["http_config"].values[bytes(4)])


def test_generations_take_turns(maps: dict[str, ArrayMap], journal: list[tuple[str, int]]) -> None:
    writer = HttpTableWriter(maps)
    first, second = (compile_rulesets({1: (Rule("GET", path),)}) for path in ("/a", "/b"))
    writer.write(first)
    assert journal == [
        ("http_config", 0),  # whether traces are read
        ("http_config", 0),
        ("wait", 0),
        ("http_grammar", 0),
        ("http_config", 0),
        ("http_config", 0),
        ("wait", 0),
        ("http_tables", 1),
        ("http_config", 0),
    ]
    assert (config(maps).generation, config(maps).oldest) == (1, 0)
    journal.clear()
    writer.write(second)
    assert journal == [("http_config", 0), ("wait", 0), ("http_tables", 0), ("http_config", 0)]
    assert (config(maps).generation, config(maps).oldest) == (2, 1)
    assert maps["http_tables"].values[bytes(4)] == table_image(second)
    journal.clear()
    # The same again, also by another process that finds the maps as they are: nothing is written.
    HttpTableWriter(maps).write(second)
    assert journal == []


def test_numbers_come_round(maps: dict[str, ArrayMap]) -> None:
    maps["http_config"].values[bytes(4)] = HttpConfig(generation=0xFFFFFFFF, oldest=0xFFFFFFFE).pack()
    HttpTableWriter(maps).write(compile_rulesets({1: (Rule(),)}))
    assert config(maps).generation == 2  # 0 would mean "nothing written"; the slot is still the other one


def test_another_grammar_makes_connections_unknown_first(
    maps: dict[str, ArrayMap], journal: list[tuple[str, int]]
) -> None:
    writer = HttpTableWriter(maps)
    writer.write(compile_rulesets({}))
    wanted = config(maps).grammar
    changed = config(maps)
    changed.grammar = 12345
    maps["http_config"].values[bytes(4)] = changed.pack()
    journal.clear()
    writer.write(compile_rulesets({}))
    assert journal == [("http_config", 0), ("wait", 0), ("http_grammar", 0), ("http_config", 0)]
    assert config(maps).grammar == wanted


def test_waiting_for_programs_works() -> None:
    http_tables.wait_for_programs()
