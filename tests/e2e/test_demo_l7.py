"""The demonstration of L7 policy as a test: every check of it a test of its own."""

from __future__ import annotations

import asyncio
import io
import os

import pytest
from rich.console import Console

from services.sandbox.checks import Check, Result
from services.sandbox.demo import LEFTOVERS, SHOWS, demonstrate

pytestmark = pytest.mark.root
SHOW = SHOWS["l7"]


@pytest.fixture(scope="module")
def results() -> dict[Check, Result]:
    """What the demonstration found; one run for all tests."""
    shown = Console(file=io.StringIO(), width=160)
    found = asyncio.run(demonstrate(shown, f"e2e-l7-{os.getpid()}", SHOW))
    return {result.check: result for result in found}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("check", [*SHOW.checks, LEFTOVERS], ids=str)
def test_check(check: Check, results: dict[Check, Result]) -> None:
    assert check in results, "the check was not run"
    assert results[check].ok, f"expected {check.expected}, got {results[check].got}"


def test_nothing_was_checked_that_is_not_declared(results: dict[Check, Result]) -> None:
    assert set(results) == {*SHOW.checks, LEFTOVERS}
