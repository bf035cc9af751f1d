"""From one watch on etcd to the streams of all agents.

A watcher is a cursor into the journal (`journal.py`): it is told the latest state of what changed since, and when
the journal no longer reaches back to its cursor, a snapshot. So the memory of a slow or stuck watcher is one number
and the message that gRPC has not taken yet.

Messages are shared: watchers at the same cursor get the same objects, and a snapshot is built once and then
followed by what happened since.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from services.common.errors import Unavailable
from services.common.log import get_logger
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.identity.journal import Journal
from services.identity.mirror import Mirror
from services.identity.state import everything
from services.identity.wire import messages, reserved_identities

log = get_logger("fanout")

PACE_BASE_SECONDS = 0.002
PACE_PER_WATCHER_SECONDS = 0.00005
"""A round of messages to all watchers costs about this much; rounds may use about half of the time."""
CACHED_DELTAS = 32
FAR_BEHIND = 20_000
"""Changes beyond which a snapshot, which is shared and packed in slices, is the lighter answer."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything as of `revision`, packed."""

    revision: int
    history: int
    messages: tuple[pb.WatchResponse, ...]


class Pulse:
    """Wakes all waiters together, the first time at once and then at most once per interval."""

    def __init__(self, interval: Callable[[], float]) -> None:
        self._interval = interval
        self._future: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0

    def beat(self) -> None:
        """Something changed."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._last + self._interval()), self._fire)

    async def wait(self) -> None:
        """Until the next time that waiters are woken."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._future)

    def _fire(self) -> None:
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        future, self._future = self._future, None
        if future is not None:
            future.set_result(None)


class Fanout:
    """Serves watch streams from a mirror. `on_reset` hears why a watcher had to start anew."""

    def __init__(self, mirror: Mirror, on_reset: Callable[[str], None]) -> None:
        self._mirror, self._on_reset = mirror, on_reset
        self._pulse = Pulse(lambda: PACE_BASE_SECONDS + PACE_PER_WATCHER_SECONDS * self.watchers)
        self._snapshot: Snapshot | None = None
        self._building = asyncio.Lock()
        self._deltas: dict[tuple[int, int, int], tuple[pb.WatchResponse, ...]] = {}
        self._closed = False
        self.watchers = 0
        mirror.subscribe(self._pulse.beat)

    def close(self) -> None:
        """End all streams: the watchers resume at another replica."""
        self._closed = True
        self._pulse.beat()

    async def stream(
        self, resume_revision: int, node: str, resume_history: str = ""
    ) -> AsyncIterator[pb.WatchResponse]:
        """The messages of one watcher, for ever; raises `Unavailable` before the first load and at the end."""
        self._mirror.require_loaded()
        self.watchers += 1
        try:
            reason = await self._unfit(resume_revision, resume_history)
            async for message in self._stream(resume_revision, node, reason):
                yield message
        finally:
            self.watchers -= 1

    async def _stream(self, cursor: int, node: str, reason: str) -> AsyncIterator[pb.WatchResponse]:
        journal = self._mirror.journal
        history, in_sync = journal.history, False
        while not self._closed:
            if history != journal.history:
                reason = "history"
            elif not reason and (not journal.covers(cursor) or journal.length_after(cursor) > FAR_BEHIND):
                reason = "behind"
            if reason:
                self._on_reset(reason)
                log.debug("watcher gets a snapshot", node=node, reason=reason, cursor=cursor, head=journal.head)
                snapshot = await self._current_snapshot()
                cursor, history, reason, in_sync = snapshot.revision, snapshot.history, "", False
                for message in snapshot.messages:
                    yield message
                continue
            head = journal.head
            for message in self._delta(cursor, head):
                yield message
            cursor = max(cursor, head)
            if not in_sync:
                in_sync = True
                yield pb.WatchResponse(revision=cursor, in_sync=True, history=self._mirror.history)
            while journal.head <= cursor and history == journal.history and not self._closed:
                await self._pulse.wait()
        raise Unavailable("this replica is shutting down: resume at another one")

    async def _unfit(self, revision: int, history: str) -> str:
        """Why a watcher cannot be resumed at `revision`; empty if it can.

        A watcher may know more than this replica does: another one told it, before or after etcd was emptied. Which
        of the two only etcd can say. Until it does the watcher keeps what it has: an older state would be worse.
        """
        mirror = self._mirror
        if revision <= 0:
            return "new"
        while not self._closed:
            foreign = bool(history) and history != mirror.history
            if not foreign and revision <= mirror.journal.head:
                return ""
            if mirror.connected:
                if foreign:
                    return "history"
                with contextlib.suppress(Unavailable):
                    return "" if await mirror.etcd_is_at(revision) else "history"
            await self._pulse.wait()
        return ""

    def _delta(self, cursor: int, head: int) -> tuple[pb.WatchResponse, ...]:
        """What happened after `cursor`. Only the last message says so: the ones before it can be lost half-way."""
        journal = self._mirror.journal
        if cursor >= head:
            return ()
        key = (journal.history, cursor, head)
        packed = self._deltas.get(key)
        if packed is None:
            packed = tuple(messages(journal.since(cursor), cursor))
            if packed:
                packed[-1].revision = head
            if len(self._deltas) >= CACHED_DELTAS:
                del self._deltas[next(iter(self._deltas))]
            self._deltas[key] = packed
        return packed

    async def _current_snapshot(self) -> Snapshot:
        """A snapshot that the journal continues; built anew once what came after it is a quarter of it."""
        async with self._building:
            known = self._snapshot
            if known is None or not self._worth_keeping(known):
                self._snapshot = known = await self._build()
            return known

    def _worth_keeping(self, snapshot: Snapshot) -> bool:
        journal, state = self._mirror.journal, self._mirror.state
        if snapshot.history != journal.history or not journal.covers(snapshot.revision):
            return False
        return journal.length_after(snapshot.revision) * 4 <= len(state.identities) + len(state.rows)

    async def _build(self) -> Snapshot:
        """Pack everything. The values are immutable and listed at once; packing lets others run in between."""
        journal: Journal = self._mirror.journal
        revision, history = journal.head, journal.history
        changes = list(everything(self._mirror.state))
        packed = [pb.WatchResponse(reset=True, identities=reserved_identities())]
        for message in messages(changes, 0):
            packed.append(message)
            await asyncio.sleep(0)
        return Snapshot(revision, history, tuple(packed))
