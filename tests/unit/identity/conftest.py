"""A replica's parts on the in-memory store, driven step by step."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from services.identity.allocator import Allocator, Numbers
from services.identity.endpoints import EndpointRegistry
from services.identity.fanout import Fanout
from services.identity.gc import Collector
from services.identity.journal import Journal
from services.identity.keys import Keys
from services.identity.leases import NodeLeases
from services.identity.memory import MemoryStore
from services.identity.mirror import Mirror

GRACE = 100.0


@dataclass
class Parts:
    """Everything between the store and the gRPC face of one replica."""

    store: MemoryStore
    keys: Keys
    mirror: Mirror
    leases: NodeLeases
    numbers: Numbers
    allocator: Allocator
    registry: EndpointRegistry
    collector: Collector
    fanout: Fanout
    resets: list[str]

    async def caught_up(self) -> None:
        """Wait until the mirror has seen all that the store did inside the watched range."""
        revision = (await self.store.transact([], [])).revision
        async with asyncio.timeout(5):
            while self.mirror.journal.head < revision:  # noqa: ASYNC110 - virtual steps, no event to wait for
                await asyncio.sleep(0)


class Cluster:
    """Replicas on one store; their mirrors run until the test ends."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self._tasks: list[asyncio.Task[None]] = []

    async def replica(
        self, first: int = 256, last: int = 100_000, journal: int = 1_000, backlog: int = 0, wait: bool = True
    ) -> Parts:
        """Start one more."""
        keys = Keys()
        mirror = Mirror(self.store, keys, Journal(journal), backlog)
        leases = NodeLeases(self.store, keys, mirror, 60)
        numbers = Numbers(first, last, random.Random(len(self._tasks)))
        resets: list[str] = []
        parts = Parts(
            store=self.store,
            keys=keys,
            mirror=mirror,
            leases=leases,
            numbers=numbers,
            allocator=Allocator(self.store, keys, mirror, leases, numbers),
            registry=EndpointRegistry(self.store, keys, mirror, leases),
            collector=Collector(self.store, keys, mirror, GRACE, numbers.rest),
            fanout=Fanout(mirror, resets.append),
            resets=resets,
        )
        self._tasks.append(asyncio.create_task(mirror.run(), name="mirror"))
        if wait:
            async with asyncio.timeout(5):
                await mirror.loaded.wait()
        return parts

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    await made.close()


@pytest.fixture
async def parts(cluster: Cluster) -> Parts:
    return await cluster.replica()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], object]:
    """`await until(condition)`: bounded waiting."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - any condition of any part
                await asyncio.sleep(0.001)

    return wait
