"""The kernel's loss counters as differences: what was lost since the last look, per CPU."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Protocol

from services.agent.abi.events import EventType
from services.agent.events.getters import LostCounters


class LookupMap(Protocol):
    """A pinned map: key bytes -> value bytes."""

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None where there is none."""
        ...


class LostMap:
    """`LostCounters` on the datapath's `lost` map: a per-CPU array of u64, one entry per event type."""

    def __init__(self, lost_map: LookupMap, kinds: Sequence[int] = tuple(EventType)) -> None:
        self._map, self._kinds = lost_map, kinds

    def read(self) -> dict[tuple[int, int], int]:
        """(event kind, cpu) -> events lost since the map was made."""
        counts: dict[tuple[int, int], int] = {}
        for kind in self._kinds:
            value = self._map.lookup(struct.pack("=I", kind)) or b""
            for cpu, (count,) in enumerate(struct.iter_unpack("=Q", value)):
                if count:
                    counts[kind, cpu] = count
        return counts


class LostWatch:
    """What was counted when the agent starts was another agent's to tell; from then on every difference is told."""

    def __init__(self, counters: LostCounters) -> None:
        self._counters = counters
        self._known = counters.read()

    def news(self) -> Iterator[tuple[int, int]]:
        """(cpu, events) that were lost since the last call."""
        counts = self._counters.read()
        per_cpu: dict[int, int] = {}
        for (kind, cpu), count in counts.items():
            lost = count - self._known.get((kind, cpu), 0)
            if lost > 0:
                per_cpu[cpu] = per_cpu.get(cpu, 0) + lost
        self._known = counts
        yield from per_cpu.items()
