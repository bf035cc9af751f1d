"""Rows on their way to a collector: a bounded queue, batches, another try where that helps, a count of what became of
each. Nobody ever waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np

from services.common.log import get_logger
from services.common.retry import Backoff
from services.flows.columns import DICTIONARY_OF, STORED, Array, Columns, length, take, zeros
from services.flows.dictionary import Dictionaries, Uses

log = get_logger("otlp")

QUEUE_ROWS = 65_536
BATCH_ROWS = 512
PAUSE_S, MAX_PAUSE_S = 0.5, 15.0
RETRYABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
)
"""What the protocol says is worth another try."""

Send = Callable[[Columns], Awaitable[int]]
"""Sends rows; returns how many of them the collector rejected. Raises `grpc.aio.AioRpcError`."""


@dataclass(slots=True)
class Figures:
    """Rows: offered = sent + dropped + rejected + failed + waiting."""

    offered: int = 0
    sent: int = 0
    dropped: int = 0
    rejected: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Waiting:
    columns: Columns
    node: int
    uses: Uses = field(repr=False)


class Lane:
    """`offer` takes batches as they are stored; `run` sends until cancelled. `what` is said in logs: flows, spans."""

    def __init__(self, what: str, dictionaries: Dictionaries, wanted: Callable[[Columns], Array]) -> None:
        """`wanted`: indices of the rows to send."""
        self._what, self._dictionaries, self._wanted = what, dictionaries, wanted
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0
        self._news = asyncio.Event()
        self.figures = Figures()

    def offer(self, columns: Columns, node: int) -> None:
        """Queue the rows that are wanted; those beyond the bound are dropped and counted."""
        index = self._wanted(columns)
        room = QUEUE_ROWS - self._rows
        self.figures.offered += len(index)
        self.figures.dropped += max(0, len(index) - room)
        index = index[:room]
        if not len(index):
            return
        rows = take(columns, index)
        uses = Uses(self._dictionaries)
        for name, dictionary in DICTIONARY_OF.items():
            if name in rows:
                uses.add(dictionary, rows[name])
        self._dictionaries.nodes.retain(np.array([node]))
        self._waiting.append(_Waiting(rows, node, uses))
        self._rows += len(index)
        self._news.set()

    async def run(self, send: Send) -> None:
        """Send until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                batch = self._waiting[0]
                for columns in _chunks(batch):
                    await self._send(send, columns)
                    self._rows -= length(columns)
                self._waiting.popleft()
                batch.uses.release()
                self._dictionaries.nodes.release(np.array([batch.node]))

    async def _send(self, send: Send, columns: Columns) -> None:
        rows = length(columns)
        async for attempt in Backoff(PAUSE_S, MAX_PAUSE_S):
            try:
                rejected = min(rows, max(0, await send(columns)))
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRYABLE:
                    self.figures.failed += rows
                    log.warning(f"{self._what} refused by the collector", rows=rows, error=error.details())
                    return
                if not attempt:
                    log.warning(f"collector away, {self._what} wait", waiting=self._rows, error=error.details())
            else:
                self.figures.rejected += rejected
                self.figures.sent += rows - rejected
                return


def _chunks(batch: _Waiting) -> Iterator[Columns]:
    rows = length(batch.columns)
    complete = {name: batch.columns.get(name, zeros(name, rows)) for name in STORED}
    complete["node"] = np.full(rows, batch.node, STORED["node"])
    for start in range(0, rows, BATCH_ROWS):
        yield {name: values[start : start + BATCH_ROWS] for name, values in complete.items()}
