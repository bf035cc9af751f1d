"""The one task that computes: mailbox -> engine -> maps. Everything before it gathers, everything after it writes.

    sources --put--> Mailbox --take--> [observers] --> Engine.apply/flush --> DatapathSink --> kernel maps

The first flush after a start is a resync: what the pinned maps hold is compared with what they should hold, and only
the difference is written, so that connections never notice. Until every source was complete nothing is written at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from services.agent.calc.engine import Engine
from services.agent.calc.maps import HttpRulesets, MapName
from services.agent.datapath.sink import DatapathSink
from services.agent.host import HostAddresses
from services.agent.realised import Realised
from services.agent.sources.base import Mailbox
from services.common import heap
from services.common.errors import Exhausted
from services.common.log import get_logger
from services.model.objects import PolicyObject, Update, Upserted

RETRY_SECONDS = 1.0
_ENDPOINT_MAPS: tuple[MapName, ...] = ("endpoints", "endpoint_addrs", "endpoint_ifs")

Observer = Callable[[Update], object]


def _is_policy(update: Update) -> bool:
    return isinstance(update, Upserted) and isinstance(update.object, PolicyObject)


class Driver:
    """`observers` see every update before the engine does. `on_applied` runs after every batch, `on_sync` once."""

    def __init__(
        self,
        mailbox: Mailbox,
        engine: Engine,
        sink: DatapathSink,
        host: HostAddresses,
    ) -> None:
        self._mailbox, self._engine, self._sink, self._host = mailbox, engine, sink, host
        self._waiting: list[asyncio.Future[None]] = []
        self._synced = False
        self._log = get_logger("driver")
        self.observers: Sequence[Observer] = ()
        self.on_applied: Callable[[], None] = lambda: None
        self.on_sync: Callable[[], Awaitable[None]] | None = None
        self.on_policies: Callable[[int, float], None] = lambda policies, seconds: None
        """Hears how many changed policies are in force, and how long ago the first of them came."""
        self.realised = Realised(sink)
        self.batches = 0
        self.changes = 0

    @property
    def synced(self) -> bool:
        """Whether the maps were once made equal to what they should hold."""
        return self._synced

    async def publish(self, updates: Sequence[Update]) -> None:
        """Hand in updates and wait until the maps have what follows; raises `Exhausted` when they cannot take it."""
        for update in updates:
            self._mailbox.put(update)
        applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(applied)
        await applied

    async def run(self) -> None:
        """Compute and write, for ever."""
        while True:
            batch = await self._mailbox.take()
            since, policies = self._mailbox.waited_since, sum(map(_is_policy, batch))
            waiting, self._waiting = self._waiting, []
            for update in batch:
                self._apply(update)
            if not self._engine.in_sync:
                self._waiting = waiting + self._waiting
                continue
            await self._write()
            if policies:
                self.on_policies(policies, time.monotonic() - since)
            self.batches += 1
            self.on_applied()
            self._release(waiting)

    async def retry(self) -> None:
        """Try again what the kernel refused, once a second, for ever."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if self._sink.pending and self._sink.retry():
                self.realised.written(self._engine.revision)
                self._log.info("maps are complete again")

    def _apply(self, update: Update) -> None:
        for observer in self.observers:
            observer(update)
        for meant in self._host.seen(update):
            self._engine.apply(meant)

    async def _write(self) -> None:
        if self._synced:
            changes = self._engine.flush()
            self.changes += len(changes)
            if not self._sink.apply(changes):
                self._log.error("maps refused entries, trying again", errors=self._sink.errors)
            self.realised.written(self._engine.revision)
            return
        # Not even the first changes are lost: what should be is compared with what is.
        self._engine.flush()
        done = self._sink.resync(
            self._engine.desired(), HttpRulesets(self._engine.rulesets()), self._engine.name_rules()
        )
        self._synced = True
        self.realised.written(self._engine.revision)
        self._log.info("maps reconciled", **{name: f"+{put} -{removed}" for name, (put, removed) in done.items()})
        if self.on_sync:
            await self.on_sync()
        heap.give_back()

    def _release(self, waiting: list[asyncio.Future[None]]) -> None:
        full = [name for name in _ENDPOINT_MAPS if self._sink.reconcilers[name].pending]
        for future in waiting:
            if future.done():
                continue
            if full:
                future.set_exception(Exhausted(f"map {full[0]}: {self._sink.reconcilers[full[0]].last_error}"))
            else:
                future.set_result(None)
