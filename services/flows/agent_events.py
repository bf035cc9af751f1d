"""The newest events of a node that are no flows: kept in order, given to whoever asks (the Hubble API, 4.3).

An event is kept as a way to build its message: telling costs an append, and most events nobody reads.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2 as pb

CAPACITY = 4095
TURN = 256
"""Events given out before others have a turn."""

Build = Callable[[], flow_pb2.AgentEvent]


@dataclass(frozen=True, slots=True)
class _Entry:
    time_ns: int
    build: Build


class AgentEvents:
    """A bounded log of one node. Single-threaded."""

    def __init__(self, node: str, capacity: int = CAPACITY, now: Callable[[], int] = time.time_ns) -> None:
        self._node, self._now = node, now
        self._entries: deque[_Entry] = deque(maxlen=capacity)
        self._listeners: set[asyncio.Event] = set()
        self.told = 0
        """Events ever told; the position after the newest."""
        self.missed = 0
        """Events that were overwritten before some follower had them."""

    @property
    def first(self) -> int:
        """Position of the oldest event that is held."""
        return self.told - len(self._entries)

    def tell(self, build: Build) -> None:
        """Something happened, now."""
        self._entries.append(_Entry(self._now(), build))
        self.told += 1
        for listener in self._listeners:
            listener.set()

    async def stream(self, request: pb.GetAgentEventsRequest) -> AsyncIterator[pb.GetAgentEventsResponse]:
        """What was asked for, oldest first; raises `Invalid` for options that exclude each other."""
        if request.first and request.follow:
            raise Invalid("first cannot be specified with follow")
        since = request.since.ToNanoseconds() if request.HasField("since") else None
        until = request.until.ToNanoseconds() if request.HasField("until") else None
        place = self._start(request, since)
        left = 0 if request.follow else request.number
        news = asyncio.Event()
        self._listeners.add(news)
        try:
            while True:
                news.clear()
                while place < self.told:
                    if place < self.first:
                        self.missed += self.first - place
                        place = self.first
                    entry = self._entries[place - self.first]
                    place += 1
                    if until is not None and entry.time_ns > until:
                        return
                    if since is not None and entry.time_ns < since:
                        continue
                    yield self._response(entry)
                    left -= 1
                    if left == 0:
                        return
                    if place % TURN == 0:
                        await asyncio.sleep(0)
                if not request.follow:
                    return
                await news.wait()
        finally:
            self._listeners.discard(news)

    def _start(self, request: pb.GetAgentEventsRequest, since: int | None) -> int:
        if since is not None or request.first:
            return self.first
        if request.number:
            return max(self.first, self.told - request.number)
        return self.told if request.follow else self.first

    def _response(self, entry: _Entry) -> pb.GetAgentEventsResponse:
        response = pb.GetAgentEventsResponse(node_name=self._node, agent_event=entry.build())
        response.time.FromNanoseconds(entry.time_ns)
        return response
