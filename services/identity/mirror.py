"""Keeps a replica's memory equal to etcd: one listing, one watch, and what to do when either breaks off.

Three nested loops: `_follow` (one watch), `_catch_up` (from what is known; reads anew where etcd has forgotten
what lies between), `run` (for ever, with back-off). While etcd is away the memory stays and is served.

Each connection begins with a mark: a write inside the watched range. A watch has caught up exactly when it has
delivered its mark, and an etcd that takes the mark is one that can commit.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import uuid
from collections.abc import Callable

from services.common.errors import Unavailable
from services.common.log import get_logger
from services.common.retry import Backoff
from services.identity.journal import Journal
from services.identity.keys import KeyRange, Keys
from services.identity.state import State, difference
from services.identity.store import Absent, Compacted, Put, Store

log = get_logger("mirror")

PAGE = 5_000


class Mirror:
    """State and journal of this replica, and whether etcd is behind them right now.

    `backlog`: how many revisions of the past are read at start, so that watchers who resume after this replica was
    restarted find their place in the journal.
    """

    def __init__(self, store: Store, keys: Keys, journal: Journal, backlog: int) -> None:
        self._store, self._keys, self._backlog = store, keys, backlog
        self._listeners: list[Callable[[], None]] = []
        self.journal = journal
        self.state = State(keys)
        self.loaded = asyncio.Event()
        """Set once everything that etcd held has been read; reads are answered from then on."""
        self.connected = False
        """Whether a watch stands at this moment."""
        self._problem = "etcd has not been read yet"
        self._history: bytes | None = None
        self._backoff = Backoff(initial=0.1, maximum=2.0)
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    async def run(self) -> None:
        """Follow etcd until cancelled."""
        while True:
            try:
                await self._catch_up()
            except Unavailable as error:
                self._lost(str(error))
            await self._backoff.wait()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every step forward, and when the connection comes or goes."""
        self._listeners.append(listener)

    def require_loaded(self) -> None:
        """Raise `Unavailable` before the first complete read."""
        if not self.loaded.is_set():
            raise Unavailable(f"identities are not loaded yet: {self._problem}; try again or ask another replica")

    async def reached(self, revision: int, timeout: float) -> bool:
        """Wait until the state includes `revision`, so that a writer reads what it wrote; False after `timeout`."""
        if self.journal.head >= revision:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (revision, next(self._order), future))
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return False
        return True

    @property
    def history(self) -> str:
        """The name of the history of etcd that `journal` is about; empty before the first read."""
        return (self._history or b"").decode()

    async def etcd_is_at(self, revision: int) -> bool:
        """Whether etcd itself has come to `revision`, though this replica has not; raises `Unavailable`."""
        return (await self._store.page(self._keys.state, limit=1)).revision >= revision

    async def _catch_up(self) -> None:
        history, mark = await self._identify()
        if history == self._history and mark > self.journal.head:
            try:
                await self._follow(mark)
            except Compacted:
                log.info("etcd compacted what happened while it was away: reading anew", revision=self.journal.head)
        try:
            await self._read_all(history, mark)
            await self._follow(mark)
        except Compacted as error:
            raise Unavailable(f"etcd compacted its history while it was read: {error}") from error

    async def _identify(self) -> tuple[bytes, int]:
        """The name of etcd's history, which changes when it is emptied, and the revision of a fresh mark."""
        key, fresh = self._keys.history, uuid.uuid4().hex.encode()
        outcome = await self._store.transact([Absent(key)], [Put(key, fresh)], [key])
        history = fresh if outcome.succeeded else outcome.found[key].value
        return history, (await self._store.transact([], [Put(self._keys.mark, b"")])).revision

    async def _read_all(self, history: bytes, mark: int) -> None:
        previous, first = self.state, self._history is None
        self.state, revision = await self._read_with_past(mark) if first else (await self._read(mark), mark)
        if first:
            self.journal.begin(revision)
        elif history == self._history and revision > self.journal.head:
            self.journal.jump(revision, difference(previous, self.state))
        else:
            log.warning("etcd has another history than before: all watchers start anew", revision=revision)
            self.journal.restart(revision)
        self._history = history
        self._advanced()

    async def _read_with_past(self, mark: int) -> tuple[State, int]:
        past = max(1, mark - self._backlog)
        if self._backlog:
            try:
                return await self._read(past), past
            except Compacted:
                log.debug("etcd has forgotten the past that watchers might resume from", revision=past)
        return await self._read(mark), mark

    async def _read(self, revision: int) -> State:
        state, keys = State(self._keys), self._keys.state
        while True:
            page = await self._store.page(keys, revision, PAGE)
            for entry in page.entries:
                state.apply(entry)
            if page.next is None:
                return state
            keys = KeyRange(page.next, keys.end)

    async def _follow(self, mark: int) -> None:
        stands = False
        async for batch in self._store.watch(self._keys.state, self.journal.head + 1):
            if not stands:
                stands = True
                if batch.revision < mark:
                    raise Unavailable(f"this etcd is at revision {batch.revision}, the cluster was at {mark} already")
                self._connected()
            else:
                changes = ((event.mod_revision, self.state.apply(event)) for event in batch.events)
                self.journal.append(batch.revision, [(when, change) for when, change in changes if change])
            if self.journal.head >= mark:
                self.loaded.set()
            self._advanced()

    def _connected(self) -> None:
        self.connected, self._problem = True, "history is being read"
        self._backoff.reset()
        log.info("following etcd", revision=self.journal.head, identities=len(self.state.identities))
        self._tell()

    def _lost(self, problem: str) -> None:
        if self.connected or problem != self._problem:
            log.warning("etcd is away: reads go on from memory, changes are refused", reason=problem)
        self.connected, self._problem = False, problem
        self._tell()

    def _advanced(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.journal.head:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
