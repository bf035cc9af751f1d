"""Whether pods reach one another, and waiting until they do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.integration.agent.cluster import Pod, in_pod

PORT = 7000
"""Where the tests' servers listen."""


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    """Ask until it is so, within a bound."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - other processes change it
            await asyncio.sleep(0.02)


async def connects(source: Pod, address: str, port: int = PORT) -> bool:
    """Whether a connection comes about, by asking for one with a short deadline."""
    code = f"import socket; socket.create_connection(({address!r}, {port}), timeout=0.3)"
    done = await asyncio.to_thread(in_pod, source, "/usr/bin/python3", "-S", "-c", code)
    return done.returncode == 0
