"""Clusters for the tests of this folder, and traffic in them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.cluster import NETNS, Cluster, Pod

LOAD = str(Path(__file__).with_name("load.py"))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """Two nodes."""
    async with Cluster() as cluster:
        yield cluster


class Load:
    """A `load.py` in a pod."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, pod: Pod, role: str, address: str, port: int) -> Load:
        process = await asyncio.create_subprocess_exec(
            "nsenter",
            f"--net={NETNS / pod.netns}",
            sys.executable,
            LOAD,
            role,
            address,
            str(port),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"started\n"
        return cls(process)

    async def finish(self) -> dict[str, Any]:
        """End it; what it counted."""
        assert self._process.stdout is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        line = await asyncio.wait_for(self._process.stdout.readline(), 10)
        await self._process.wait()
        result: dict[str, Any] = json.loads(line)
        return result

    async def kill(self) -> None:
        """End it, whatever it does."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
