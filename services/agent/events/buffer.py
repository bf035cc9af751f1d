"""What waits for the relay: batches that are not acknowledged yet, within a bound of bytes.

Two halves: batches that were sent (the relay may have stored them: they stay until it says so), then batches that
were never sent. The bound takes the oldest of the second half and counts its rows: received + counted = emitted.
A sequence number is given at the first sending, so that there are no gaps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.flows.columns import DICTIONARY_OF, DTYPES, TRACE, Array, Columns, length
from services.flows.dictionary import Dictionaries, distinct

TRACE_BYTES = sum(DTYPES[name].itemsize for name in TRACE)
ROW_BYTES = sum(kind.itemsize for kind in DTYPES.values()) - TRACE_BYTES
BATCH_BYTES = 512
"""What a batch takes beside its rows."""


@dataclass(slots=True)
class Loss:
    """Events lost at one place, and when (wall clock, nanoseconds)."""

    source: int
    cpu: int
    events: int
    first_ns: int
    last_ns: int


@dataclass(slots=True)
class PendingBatch:
    """Rows on their way, with the dictionary numbers they use."""

    columns: Columns
    numbers: dict[str, Array]
    sequence: int = 0
    """0 = never sent."""
    losses: list[Loss] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of the batch; 0 for one that carries losses alone."""
        return length(self.columns)

    @property
    def bytes(self) -> int:
        """Memory the batch counts for."""
        return BATCH_BYTES + self.rows * (ROW_BYTES + (TRACE_BYTES if TRACE[0] in self.columns else 0))


class SendBuffer:
    """Single-threaded; the numbers of its batches are retained in `dictionaries`."""

    def __init__(self, dictionaries: Dictionaries, limit_bytes: int) -> None:
        self._dictionaries, self._limit = dictionaries, limit_bytes
        self._sent: deque[PendingBatch] = deque()
        self._unsent: deque[PendingBatch] = deque()
        self._resend = 0
        """How many of `_sent` the current stream has been given."""
        self._losses: dict[tuple[int, int], Loss] = {}
        self._sequence = 0
        self.bytes = 0
        self.dropped_rows = 0

    def __len__(self) -> int:
        return len(self._sent) + len(self._unsent)

    @property
    def empty(self) -> bool:
        """The relay has acknowledged everything, losses included."""
        return not (self._sent or self._unsent or self._losses)

    def add(self, columns: Columns, now_ns: int) -> None:
        """Queue a batch; makes room by dropping the oldest batches that were never sent."""
        numbers = {}
        for dictionary in set(DICTIONARY_OF.values()):
            used = [columns[name] for name, of in DICTIONARY_OF.items() if of == dictionary and name in columns]
            target = self._dictionaries.of(dictionary)
            numbers[dictionary] = distinct(np.concatenate(used), target.size) if used else np.zeros(0, np.intp)
            target.retain(numbers[dictionary])
        self._unsent.append(PendingBatch(columns, numbers))
        self.bytes += self._unsent[-1].bytes
        while self.bytes > self._limit and self._unsent:
            batch = self._unsent.popleft()
            self._forget(batch)
            self.dropped_rows += batch.rows
            self.lose(pb.AGENT_BUFFER, 0, batch.rows, now_ns)

    def lose(self, source: int, cpu: int, events: int, now_ns: int) -> None:
        """Count events that were lost; told to the relay with the next batch that is sent."""
        loss = self._losses.setdefault((source, cpu), Loss(source, cpu, 0, now_ns, now_ns))
        loss.events += events
        loss.last_ns = now_ns

    def rewind(self, acknowledged: int) -> int:
        """A new stream begins, and the relay has everything up to `acknowledged` (rows of it: the result).

        The rest is sent again.
        """
        rows = self.acknowledge(acknowledged)
        self._resend = 0
        return rows

    def next(self) -> PendingBatch | None:
        """The batch to send now, if any: first those of an earlier stream, then new ones."""
        if self._resend < len(self._sent):
            self._resend += 1
            return self._sent[self._resend - 1]
        if not self._unsent and not self._losses:
            return None
        batch = self._unsent.popleft() if self._unsent else self._loss_only()
        self._sequence += 1
        batch.sequence = self._sequence
        batch.losses = list(self._losses.values())
        self._losses.clear()
        self._sent.append(batch)
        self._resend += 1
        return batch

    def _loss_only(self) -> PendingBatch:
        batch = PendingBatch({"time_ns": np.zeros(0, np.int64)}, {})
        self.bytes += batch.bytes
        return batch

    def acknowledge(self, sequence: int) -> int:
        """The relay has stored everything up to `sequence`; returns the rows that need not be kept any more."""
        rows = 0
        while self._sent and self._sent[0].sequence <= sequence:
            batch = self._sent.popleft()
            rows += batch.rows
            self._forget(batch)
            self._resend = max(0, self._resend - 1)
        return rows

    def _forget(self, batch: PendingBatch) -> None:
        self.bytes -= batch.bytes
        for dictionary, numbers in batch.numbers.items():
            self._dictionaries.of(dictionary).release(numbers)
