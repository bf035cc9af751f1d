"""Takes the hooks of interfaces ahead of their filters, when nobody waits for the kernel's network configuration.

A hook starts as a filter, which is there at once. Its better place (tcx) costs a grace period of RCU under the lock
that every new pod's interface needs, too: so interfaces take their turns one by one, after things have been quiet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from services.agent.datapath import attach
from services.agent.datapath.tcx import Hook
from services.common.errors import CiliateError, NotFound, Unavailable
from services.common.log import get_logger

QUIET_SECONDS, PAUSE_SECONDS = 2.0, 0.1
"""Without a new interface before the first one's turn; between two of them."""
Wanted = Sequence[tuple[Hook, str]]


class Advance:
    """Interfaces whose hooks are still to go. `step`: what is done with one; called in a thread."""

    def __init__(
        self,
        progs: Path,
        step: Callable[[int, Path, Wanted], None] = attach.advance,
        *,
        quiet_s: float = QUIET_SECONDS,
        pause_s: float = PAUSE_SECONDS,
    ) -> None:
        self._progs, self._step, self._quiet_s, self._pause_s = progs, step, quiet_s, pause_s
        self._waiting: dict[int, Wanted] = {}
        self._possible, self._added = True, asyncio.Event()
        self._log = get_logger("hooks")

    def add(self, ifindexes: Iterable[int], hooks: Wanted = attach.ENDPOINT_AHEAD) -> None:
        """These have their filters."""
        if not self._possible:
            return
        self._waiting |= dict.fromkeys(ifindexes, hooks)
        self._added.set()

    async def run(self) -> None:
        """Until cancelled, or until the kernel turns out not to have such a place."""
        try:
            while True:
                await self._added.wait()
                await self._quiet()
                while self._waiting and not self._added.is_set():
                    index = next(iter(self._waiting))
                    await self._advance(index, self._waiting.pop(index))
                    await asyncio.sleep(self._pause_s)
        except Unavailable as error:
            self._possible = False
            self._waiting.clear()
            self._log.info("hooks stay filters", problem=str(error))

    async def _quiet(self) -> None:
        while self._added.is_set():
            self._added.clear()
            await asyncio.sleep(self._quiet_s)

    async def _advance(self, index: int, hooks: Wanted) -> None:
        try:
            await asyncio.to_thread(self._step, index, self._progs, hooks)
        except Unavailable:
            raise
        except NotFound:
            return  # the pod has gone
        except CiliateError as error:
            self._log.warning("a hook stays a filter", ifindex=index, problem=str(error))
