"""What a source is, and the mailbox through which all of them reach the one task that computes.

In: updates from any number of source tasks. Out: batches, oldest first, where only the latest state of each thing
is left. State coalesces: the mailbox is bounded by the number of things that exist, not by how often they change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable, Mapping
from typing import Protocol, assert_never

from services.model.objects import (
    Deleted,
    EndpointDeleted,
    EndpointUpserted,
    IdentityDeleted,
    IdentityUpserted,
    IpDeleted,
    IpUpserted,
    NodeAddresses,
    Synced,
    Update,
    Upserted,
)


class Source(Protocol):
    """An endless stream of updates: everything that exists, then `Synced(name)`, then changes.

    It retries what may heal and raises what cannot. After a gap it lists again and tells the difference, deletions
    included: whoever consumes it needs to know nothing about reconnects.
    """

    @property
    def name(self) -> str: ...

    @property
    def errors(self) -> Mapping[str, str]:
        """What it has to complain about: where -> what. Empty = healthy."""
        ...

    def updates(self) -> AsyncIterator[Update]: ...


def subject(update: Update) -> Hashable:
    """What an update is about: two updates with one subject replace each other."""
    match update:
        case Upserted(object=thing):
            return thing.key
        case Deleted(key=key):
            return key
        case Synced(source=source):
            return ("synced", source)
        case NodeAddresses():
            return "node addresses"
        case IdentityUpserted(identity=identity):
            return ("identity", identity.id)
        case IdentityDeleted(id=number):
            return ("identity", number)
        case IpUpserted(entry=entry):
            return entry.prefix
        case IpDeleted(prefix=prefix):
            return prefix
        case EndpointUpserted(endpoint=endpoint):
            return ("endpoint", endpoint.id)
        case EndpointDeleted(id=number):
            return ("endpoint", number)
        case _:
            assert_never(update)


class Mailbox:
    """Coalescing hand-over between source tasks and the driver: `put` never blocks, `take` waits for something."""

    def __init__(self) -> None:
        self._pending: dict[Hashable, Update] = {}
        self._filled = asyncio.Event()
        self._first = 0.0
        self.waited_since = 0.0
        """When the oldest update of the last batch came (monotonic seconds)."""

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, update: Update) -> None:
        """Leave an update; an older one about the same thing is forgotten.

        The newest goes to the end: a `Synced` must not overtake what it vouches for, and an address that moved from
        one object to another must arrive as it happened.
        """
        key = subject(update)
        if not self._pending:
            self._first = time.monotonic()
        self._pending.pop(key, None)
        self._pending[key] = update
        self._filled.set()

    async def take(self) -> list[Update]:
        """Everything that waits, oldest first; waits for at least one."""
        await self._filled.wait()
        self._filled.clear()
        batch, self._pending = list(self._pending.values()), {}
        self.waited_since = self._first
        return batch


async def pump(source: Source, mailbox: Mailbox, quantum: int = 256) -> None:
    """Carry a source's updates into the mailbox for ever; lets others run after every `quantum` of a long list."""
    count = 0
    async for update in source.updates():
        mailbox.put(update)
        count += 1
        if count % quantum == 0:
            await asyncio.sleep(0)
