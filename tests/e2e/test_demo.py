"""The demonstrations as tests: a sandbox of two nodes for each, every check of it a test of its own."""

from __future__ import annotations

import asyncio
import functools
import io
import os

import pytest
from rich.console import Console

from services.sandbox.checks import Check, Result
from services.sandbox.demo import LEFTOVERS, SHOWS, demonstrate

pytestmark = pytest.mark.root


@functools.cache
def results(name: str) -> dict[Check, Result]:
    """What a demonstration found; one run for all of its tests."""
    shown = Console(file=io.StringIO(), width=160)
    found = asyncio.run(demonstrate(shown, f"e2e-{name or 'first'}-{os.getpid()}", SHOWS[name]))
    return {result.check: result for result in found}


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("name", "check"),
    [(name, check) for name, show in SHOWS.items() for check in (*show.checks, LEFTOVERS)],
    ids=lambda value: str(value) if value else "first",
)
def test_check(name: str, check: Check) -> None:
    assert check in results(name), "the check was not run"
    assert results(name)[check].ok, f"expected {check.expected}, got {results(name)[check].got}"


@pytest.mark.parametrize("name", SHOWS, ids=lambda name: name or "first")
def test_nothing_was_checked_that_is_not_declared(name: str) -> None:
    assert set(results(name)) == {*SHOWS[name].checks, LEFTOVERS}
