"""Several small transactions in one request to etcd, when they come faster than etcd answers.

The first goes at once; what arrives while it is under way travels together, as nested transactions of one. Nothing
waits for company, so a lone request is as fast as before.

etcd decides all nested comparisons before it does any of the writes. Together may therefore go only transactions
that do not touch each other's keys; and none that compares a range, because a key of another may fall into it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from services.common.errors import CiliateError, Unavailable
from services.identity.keys import KeyRange
from services.identity.store import Compare, Delete, LeaseGone, Outcome, Put

MOST = 32
"""Transactions per request; etcd allows 128 operations, nested ones included in their parent's count."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """What `Store.transact` is asked to do."""

    compares: Sequence[Compare]
    then: Sequence[Put | Delete]
    otherwise: Sequence[bytes] = ()

    @property
    def alone(self) -> bool:
        """Whether it cannot be told from its keys what it depends on."""
        return any(isinstance(compare.key, KeyRange) for compare in self.compares)

    def reads(self) -> set[bytes]:
        """Keys whose value decides, or is returned."""
        return {*(compare.key for compare in self.compares if isinstance(compare.key, bytes)), *self.otherwise}

    def writes(self) -> set[bytes]:
        """Keys that change."""
        return {write.key for write in self.then}


Send = Callable[[Sequence[Transaction]], Awaitable[Sequence[Outcome]]]


@dataclass(slots=True)
class _Waiting:
    transaction: Transaction
    done: asyncio.Future[Outcome]


@dataclass(slots=True)
class _Batch:
    members: list[_Waiting] = field(default_factory=list)
    reads: set[bytes] = field(default_factory=set)
    writes: set[bytes] = field(default_factory=set)

    def admits(self, transaction: Transaction) -> bool:
        """Whether it touches none of the others, and takes it in if so."""
        if self.members and (transaction.alone or len(self.members) >= MOST or self.members[0].transaction.alone):
            return False
        reads, writes = transaction.reads(), transaction.writes()
        if not (writes.isdisjoint(self.writes) and writes.isdisjoint(self.reads) and reads.isdisjoint(self.writes)):
            return False
        self.reads |= reads
        self.writes |= writes
        return True


class Batcher:
    """Collects transactions and hands them to `send`, which answers in order or raises for all of them.

    One request is under way at a time: with more of them the batches become smaller and the sum slower (measured).
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def transact(self, transaction: Transaction) -> Outcome:
        """The outcome of one transaction; raises what `send` raises."""
        waiting = _Waiting(transaction, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="etcd-batches")
        return await waiting.done

    async def close(self) -> None:
        """Give up what is under way or waiting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Until nothing waits any more."""
        members: list[_Waiting] = []
        try:
            while self._waiting:
                members = self._take()
                await self._settle(members)
        except asyncio.CancelledError:
            for member in [*members, *self._waiting]:
                member.done.cancel()
            raise
        finally:
            self._task = None

    def _take(self) -> list[_Waiting]:
        """The oldest, and all that may go with it. Who is left behind keeps its place."""
        batch, left = _Batch(), []
        for waiting in self._waiting:
            if waiting.done.done():
                continue
            if batch.admits(waiting.transaction):
                batch.members.append(waiting)
            else:
                left.append(waiting)
        self._waiting = left
        return batch.members

    async def _settle(self, members: list[_Waiting]) -> None:
        try:
            outcomes = await self._send([member.transaction for member in members]) if members else []
        except LeaseGone as error:
            if len(members) == 1:
                _fail(members, error)
                return
            # One node's lease is gone and etcd does not say whose: each is asked by itself.
            for member in members:
                await self._settle([member])
        except Unavailable as error:
            # Those who wait would fail as well, one time-out after the other.
            _fail([*members, *self._waiting], error)
            self._waiting.clear()
        except CiliateError as error:
            _fail(members, error)
        else:
            for member, outcome in zip(members, outcomes, strict=True):
                if not member.done.done():
                    member.done.set_result(outcome)


def _fail(members: list[_Waiting], error: CiliateError) -> None:
    for member in members:
        if not member.done.done():
            # An exception of its own for each: a shared one would collect the traces of all.
            member.done.set_exception(type(error)(*error.args))
