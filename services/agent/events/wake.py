"""When to look into the rings: on a timer of a few milliseconds, or at once when the kernel says one fills up.

The kernel submits without waking anybody except past a fill threshold. The rings sit in an edge-triggered epoll of
their own: with a level-triggered one, a single wake-up would keep the event loop spinning while records flow.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Iterable
from types import TracebackType
from typing import Self


class RingWaker:
    """`await wait(seconds)` returns after that time, or as soon as a ring calls."""

    def __init__(self, ring_fds: Iterable[int]) -> None:
        self._fds = tuple(ring_fds)
        self._called = asyncio.Event()
        self._epoll: select.epoll | None = None
        self.calls = 0
        """How often the kernel called."""

    def __enter__(self) -> Self:
        self._epoll = select.epoll()
        for fd in self._fds:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_call)
        return self

    def _on_call(self) -> None:
        assert self._epoll is not None
        self._epoll.poll(0)  # takes the edge: readable again only at the kernel's next call
        self.calls += 1
        self._called.set()

    async def wait(self, seconds: float) -> None:
        """Sleep until the timer or a ring ends it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._called.wait(), seconds)
        self._called.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
