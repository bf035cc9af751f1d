"""What the identity service asks of its store: the part of etcd's data model that it lives on.

A store has one history of revisions; a transaction compares, then writes or reads, in one step. `etcd.py` is the
real one, `memory.py` the same rules in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from services.common.errors import CiliateError
from services.identity.keys import KeyRange


class Compacted(CiliateError):
    """The revision asked for is no longer in the store's history: read everything anew."""


class LeaseGone(CiliateError):
    """The lease has expired, and with it every key that it carried."""


class Entry(NamedTuple):
    """A key that exists. `lease` is 0 where the key does not expire."""

    key: bytes
    value: bytes
    mod_revision: int
    lease: int = 0


class Removed(NamedTuple):
    """A key that was deleted, or expired, at `mod_revision`."""

    key: bytes
    mod_revision: int


Event = Entry | Removed


class Batch(NamedTuple):
    """What happened up to and including `revision`, in order. `events` may be empty: only time went on."""

    revision: int
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class Absent:
    """Holds if no key of the range (or the one key) exists."""

    key: bytes | KeyRange


@dataclass(frozen=True, slots=True)
class Exists:
    """Holds if the key exists."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Holds:
    """Holds if the key exists with exactly this value."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Holds if the key was last written at `mod_revision`; 0: it does not exist."""

    key: bytes
    mod_revision: int


Compare = Absent | Exists | Holds | Unchanged


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key, under a lease unless that is 0."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key; one that does not exist is no error."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """A transaction's end. `found` has the keys that were to be read instead, as far as they exist."""

    succeeded: bool
    revision: int
    found: Mapping[bytes, Entry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a range at `revision`; `next` continues it, None at its end."""

    entries: Sequence[Entry]
    revision: int
    next: bytes | None


class Store(Protocol):
    """Every method raises `Unavailable`, with the reason, while the store cannot be reached."""

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Put | Delete], otherwise: Sequence[bytes] = ()
    ) -> Outcome:
        """If all `compares` hold do `then`, else read the keys `otherwise`; raises `LeaseGone`.

        After `Unavailable` it may have been done or not: callers must be able to do it again.
        """
        ...

    async def page(self, keys: KeyRange, revision: int = 0, limit: int = 0) -> Page:
        """Entries of a range in key order, as of `revision` (0 = now); raises `Compacted`."""
        ...

    async def grant(self, ttl_seconds: int) -> int:
        """A new lease."""
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys; one that is gone is no error."""
        ...

    async def keep_alive(self, lease: int) -> int:
        """Renew a lease; its time to live in seconds, or 0 when it is gone."""
        ...

    def watch(self, keys: KeyRange, revision: int) -> AsyncIterator[Batch]:
        """Everything that happens in a range from `revision` on, beginning with an empty batch when it stands.

        The first batch's revision is the store's at that moment. Raises `Compacted`.
        """
        ...
