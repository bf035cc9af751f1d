"""The recent changes, bounded, ordered by revision: where watchers read from, each at its own pace. Pure.

A watcher is a cursor into the journal, not a queue: resuming after a reconnect, being slow and being on time are
the same operation, and the bound is one for all. Who falls out of it starts again from a snapshot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from services.identity.state import Change, coalesce


class Journal:
    """Changes after revision `floor` up to `head`, at most about `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._revisions: list[int] = []
        self._changes: list[Change] = []
        self._gaps: list[tuple[int, int]] = []
        self.floor = 0
        self.head = 0
        self.history = 0
        """Counts how often etcd's history turned out to be another one: cursors of an older one mean nothing."""

    def __len__(self) -> int:
        return len(self._changes)

    def append(self, revision: int, changes: Iterable[tuple[int, Change]]) -> None:
        """Note what happened up to and including `revision`: changes with their own revisions, in order."""
        for when, change in changes:
            self._changes.append(change)
            self._revisions.append(when)
        self.head = max(self.head, revision)
        # Trimmed in lumps: deleting from the front of a list costs its length.
        if len(self._changes) > self._limit + self._limit // 4:
            surplus = len(self._changes) - self._limit
            self.floor = self._revisions[surplus - 1]
            del self._revisions[:surplus], self._changes[:surplus]
            self._gaps = [gap for gap in self._gaps if gap[1] > self.floor]

    def jump(self, revision: int, changes: Iterable[Change]) -> None:
        """Go from `head` to `revision` knowing only the difference, not the way.

        A cursor strictly between cannot be served any more: what changed to and fro is not in the difference.
        """
        if revision > self.head + 1:
            self._gaps.append((self.head, revision))
        self.append(revision, ((revision, change) for change in changes))

    def restart(self, revision: int) -> None:
        """Begin anew at `revision` of another history; every cursor becomes void."""
        self._revisions.clear()
        self._changes.clear()
        self._gaps.clear()
        self.floor = self.head = revision
        self.history += 1

    def begin(self, revision: int) -> None:
        """Set where the journal starts, before anything was appended."""
        self.floor = self.head = revision

    def covers(self, cursor: int) -> bool:
        """Whether a reader that knows everything up to `cursor` can be told the rest."""
        return cursor >= self.floor and not any(first < cursor < last for first, last in self._gaps)

    def since(self, cursor: int) -> list[Change]:
        """What a reader at `cursor` (which must be covered) has to hear, coalesced."""
        return coalesce(self._changes[bisect_right(self._revisions, cursor) :])

    def length_after(self, cursor: int) -> int:
        """How many changes came after `cursor`, not coalesced."""
        return len(self._changes) - bisect_right(self._revisions, cursor)
