"""Hooks go ahead of the filters one by one, after things have been quiet; what cannot go stays where it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.agent.datapath.advance import Advance, Wanted
from services.agent.datapath.attach import ENDPOINT_AHEAD, OVERLAY_AHEAD
from services.common.errors import Internal, NotFound, Unavailable

PROGS = Path("/progs")


class Kernel:
    """What interfaces say when their turn comes."""

    def __init__(self, **problems: Exception) -> None:
        self.problems = problems
        self.asked: list[tuple[int, Wanted]] = []
        self.changed = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def step(self, ifindex: int, progs: Path, hooks: Wanted) -> None:
        assert progs == PROGS
        self.asked.append((ifindex, hooks))
        self.loop.call_soon_threadsafe(self.changed.set)
        if problem := self.problems.get(f"if{ifindex}"):
            raise problem

    async def until(self, *wanted: int) -> None:
        async with asyncio.timeout(5):
            while [index for index, _ in self.asked] != list(wanted):
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def running(advance: Advance) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(advance.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def made(kernel: Kernel, quiet_s: float = 0.0) -> Advance:
    return Advance(PROGS, kernel.step, quiet_s=quiet_s, pause_s=0.0)


async def test_each_has_its_turn_with_its_own_hooks() -> None:
    kernel = Kernel()
    advance = made(kernel)
    advance.add([7, 8])
    advance.add([9], OVERLAY_AHEAD)
    async with running(advance):
        await kernel.until(7, 8, 9)
        assert [hooks for _, hooks in kernel.asked] == [ENDPOINT_AHEAD, ENDPOINT_AHEAD, OVERLAY_AHEAD]
        advance.add([8])  # an agent put its programs anew
        await kernel.until(7, 8, 9, 8)


async def test_nobody_has_a_turn_before_it_is_quiet() -> None:
    kernel = Kernel()
    advance = made(kernel, quiet_s=3600)
    async with running(advance):
        for index in range(20):
            advance.add([index])
            await asyncio.sleep(0)
        assert not kernel.asked


@pytest.mark.parametrize("problem", [NotFound("gone"), Internal("?")], ids=["gone", "refused"])
async def test_one_that_cannot_keeps_no_other(problem: Exception) -> None:
    kernel = Kernel(if7=problem)
    advance = made(kernel)
    advance.add([7, 8])
    async with running(advance):
        await kernel.until(7, 8)


async def test_an_older_kernel_is_asked_once() -> None:
    kernel = Kernel(if7=Unavailable("no tcx"))
    advance = made(kernel)
    advance.add([7, 8])
    async with running(advance) as task:
        async with asyncio.timeout(5):
            await task
        advance.add([9])
        await asyncio.sleep(0)
        assert [index for index, _ in kernel.asked] == [7]
