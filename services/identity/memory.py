"""etcd's rules in memory: the `Store` that unit tests drive step by step, and the readable statement of them.

What a test may do that etcd does by itself: `expire` a lease, `compact` history, go `away` and come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from services.common.errors import Unavailable
from services.identity.keys import KeyRange
from services.identity.store import (
    Absent,
    Batch,
    Compacted,
    Compare,
    Delete,
    Entry,
    Event,
    Exists,
    Holds,
    LeaseGone,
    Outcome,
    Page,
    Put,
    Removed,
    Unchanged,
)


class MemoryStore:
    """One key space with revisions, leases and watches."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.away = False
        self.transactions = 0
        self._entries: dict[bytes, Entry] = {}
        self._events: list[Event] = []
        self._leases: dict[int, int] = {}
        self._next_lease = 1
        self._changed = asyncio.Condition()

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Put | Delete], otherwise: Sequence[bytes] = ()
    ) -> Outcome:
        """See `Store`. Other tasks run before and after it, never in the middle."""
        await self._reach()
        self.transactions += 1
        if not all(self._holds(compare) for compare in compares):
            found = {key: self._entries[key] for key in otherwise if key in self._entries}
            return Outcome(False, self.revision, found)
        for write in then:
            if isinstance(write, Put) and write.lease and write.lease not in self._leases:
                raise LeaseGone(f"lease {write.lease:x} has expired")
        self._write(then)
        await self._announce()
        return Outcome(True, self.revision)

    async def page(self, keys: KeyRange, revision: int = 0, limit: int = 0) -> Page:
        """See `Store`. A past revision is rebuilt from the events since then."""
        await self._reach()
        wanted = revision or self.revision
        if wanted < self.compacted:
            raise Compacted(f"revision {wanted} was compacted at {self.compacted}")
        entries: dict[bytes, Entry] = {}
        if wanted == self.revision:
            entries = dict(self._entries)
        else:
            for event in self._events:
                if event.mod_revision > wanted:
                    break
                entries.pop(event.key, None)
                if isinstance(event, Entry):
                    entries[event.key] = event
        found = [entries[key] for key in sorted(entries) if keys.first <= key < keys.end]
        if limit and len(found) > limit:
            return Page(found[:limit], self.revision, found[limit].key)
        return Page(found, self.revision, None)

    async def grant(self, ttl_seconds: int) -> int:
        """See `Store`. Leases end by `expire` alone."""
        await self._reach()
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        self._leases[lease] = ttl_seconds
        return lease

    async def revoke(self, lease: int) -> None:
        """See `Store`."""
        await self._reach()
        await self.expire(lease)

    async def keep_alive(self, lease: int) -> int:
        """See `Store`."""
        await self._reach()
        return self._leases.get(lease, 0)

    async def watch(self, keys: KeyRange, revision: int) -> AsyncIterator[Batch]:
        """See `Store`. Ends with `Unavailable` when the store goes away."""
        await self._reach()
        if revision <= self.compacted:
            raise Compacted(f"revision {revision} was compacted at {self.compacted}")
        yield Batch(self.revision, ())
        cursor = revision - 1
        while True:
            async with self._changed:
                while not self.away and self.revision <= cursor:
                    await self._changed.wait()
            await self._reach()
            head = self.revision
            events = [event for event in self._events if cursor < event.mod_revision <= head]
            cursor = head
            yield Batch(head, tuple(event for event in events if keys.first <= event.key < keys.end))

    async def expire(self, lease: int) -> None:
        """Let a lease run out: all its keys go in one revision."""
        self._leases.pop(lease, None)
        self._write([Delete(key) for key, entry in self._entries.items() if entry.lease == lease])
        await self._announce()

    def compact(self) -> None:
        """Forget all history up to now."""
        self.compacted = self.revision

    async def leave(self, away: bool = True) -> None:
        """Become unreachable, or reachable again; watches end."""
        self.away = away
        await self._announce()

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("the store is away")

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _holds(self, compare: Compare) -> bool:
        match compare:
            case Absent(KeyRange(first, end)):
                return not any(first <= key < end for key in self._entries)
            case Absent(key):
                return key not in self._entries
            case Exists(key):
                return key in self._entries
            case Holds(key, value):
                return key in self._entries and self._entries[key].value == value
            case Unchanged(key, mod_revision):
                return (self._entries[key].mod_revision if key in self._entries else 0) == mod_revision

    def _write(self, writes: Sequence[Put | Delete]) -> None:
        revision = self.revision + 1
        events: list[Event] = []
        for write in writes:
            if isinstance(write, Put):
                entry = Entry(write.key, write.value, revision, write.lease)
                self._entries[write.key] = entry
                events.append(entry)
            elif self._entries.pop(write.key, None):
                events.append(Removed(write.key, revision))
        if events:
            self._events += events
            self.revision = revision
