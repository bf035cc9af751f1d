"""Which flows a follower has been told, so that one that asks again from a little earlier is not told them twice."""

from __future__ import annotations

import collections
import datetime

OVERLAP = datetime.timedelta(seconds=5)
"""How late a node's flows may come behind those of others."""
MOST = 1_000_000
"""Flows remembered; with more than this in one overlap the oldest may be told again after an interruption."""


class Seen:
    """Remembers the uuids of the last `OVERLAP`, by the flows' own time. `start`: when the follower began."""

    def __init__(self, start: datetime.datetime) -> None:
        self._start = start
        self._newest: datetime.datetime | None = None
        self._order: collections.deque[tuple[datetime.datetime, str]] = collections.deque()
        self._uuids: set[str] = set()

    def first_time(self, uuid: str, time: datetime.datetime) -> bool:
        """Whether a flow is new; it is known from now on. Flows without a uuid are always new."""
        if uuid in self._uuids:
            return False
        self._newest = time if self._newest is None else max(self._newest, time)
        if uuid:
            self._uuids.add(uuid)
            self._order.append((time, uuid))
        self._forget(self._newest - OVERLAP)
        return True

    def resume(self) -> datetime.datetime:
        """The time from which on to ask again."""
        return (self._newest or self._start) - OVERLAP

    def _forget(self, horizon: datetime.datetime) -> None:
        # In the order in which they came: what stands behind one that is kept is kept a little longer than it must.
        while self._order and (self._order[0][0] < horizon or len(self._order) > MOST):
            self._uuids.discard(self._order.popleft()[1])
