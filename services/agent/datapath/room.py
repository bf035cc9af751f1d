"""Who has how much of the connection table, and how much one may have (`bpf/lib/ct_room.h`).

The kernel counts settled connections as they come and go; what the collector removes, only the agent knows. So an
endpoint's limit, which the kernel compares with its own count, is the quota plus what was collected. Every sweep counts
what is there and puts both right again: a crash between removing and writing, or an upgrade, is soon forgotten.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.agent.abi.conntrack import CtFlags
from services.agent.abi.ct_room import CT_USAGE
from services.agent.abi.endpoints import MAX_ENDPOINTS

Records = NDArray[Any]
Counts = NDArray[np.int64]
SLACK = 64
"""Settled connections by which an endpoint's count may be off while it opens and closes some during a sweep: so many,
and four times the difference that the sweep saw."""


FLOOD = 1000
"""Refused or pushed out between two sweeps: from so many on it is a flood."""


class UsageMap(Protocol):
    """Map `ct_usage`, an array."""

    def chunks(self, count: int = ...) -> Iterator[tuple[bytes, bytes, int]]:
        """Yields (keys, values, how many)."""
        ...


class LimitMap(Protocol):
    """Map `ct_limit`, an array."""

    def update_batch(self, entries: Mapping[bytes, bytes]) -> None:
        """Write entries."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """What one endpoint has of the table, or had done to it since the datapath was loaded."""

    endpoint: int
    entries: int
    settled: int
    """Connections that have come to stay; the quota is about these."""
    evicted: int
    """Connections pushed out before they settled: others, mostly its own, came faster than they were completed."""
    refused: int
    """Packets that would have opened a connection beyond the quota."""
    flooded: int = 0
    """Of both, what came since the sweep before the last."""


class Room:
    """`quota` settled connections per endpoint, 0 = no quota; ids in `exempt` (the node itself) have none."""

    def __init__(self, usage: UsageMap, limits: LimitMap, quota: int, exempt: frozenset[int] = frozenset()) -> None:
        self._usage, self._limits, self.quota = usage, limits, quota
        self._limited = np.ones(MAX_ENDPOINTS, bool)
        self._limited[[0, *exempt]] = False
        self._offset: Counts | None = None
        """Per endpoint: what the kernel's count of settled connections is too high by; None before the first sweep."""
        self._written: NDArray[np.uint32] | None = None
        self._before = np.zeros(MAX_ENDPOINTS, np.int64)
        self._entries = np.zeros(MAX_ENDPOINTS, np.int64)
        self._settled = np.zeros(MAX_ENDPOINTS, np.int64)
        self._shares: list[Share] = []
        self._swept = False

    def begin(self) -> None:
        """A sweep starts."""
        self._entries = np.zeros(MAX_ENDPOINTS, np.int64)
        self._settled = np.zeros(MAX_ENDPOINTS, np.int64)
        self._before = self._read()["settled"].astype(np.int64)

    def kept(self, entries: Records) -> None:
        """Entries that stay."""
        self._entries += _per_endpoint(entries)
        self._settled += _per_endpoint(entries[(entries["flags"] & CtFlags.SETTLED) != 0])

    def removed(self, entries: Records) -> None:
        """Entries that were collected: the kernel does not know of it."""
        if self._offset is not None:
            self._offset += _per_endpoint(entries[(entries["flags"] & CtFlags.SETTLED) != 0])

    def end(self) -> None:
        """The sweep is complete: correct the counts, tell the kernel."""
        usage = self._read()
        counted = usage["settled"].astype(np.int64)
        if self._offset is None:
            self._offset = counted - self._settled
        drift = _signed(counted - self._offset) - self._settled
        moved = np.abs(counted - self._before)
        allowed = np.where(moved == 0, 0, SLACK + 4 * moved)
        self._offset += np.where(np.abs(drift) > allowed, drift, 0)
        settled = np.maximum(_signed(counted - self._offset), 0)
        before = {share.endpoint: share.evicted + share.refused for share in self._shares}
        self._shares = []
        for i in np.flatnonzero(self._entries | usage["evicted"] | usage["refused"]):
            evicted, refused = int(usage["evicted"][i]), int(usage["refused"][i])
            flooded = max(evicted + refused - before.get(int(i), 0 if self._swept else evicted + refused), 0)
            self._shares.append(Share(int(i), int(self._entries[i]), int(settled[i]), evicted, refused, flooded))
        self._swept = True
        self._tell()

    def heaviest(self, count: int = 5) -> list[Share]:
        """The endpoints with most entries, most first, as of the last sweep."""
        return sorted(self._shares, key=lambda share: (-share.entries, share.endpoint))[:count]

    @property
    def shares(self) -> list[Share]:
        """Of every endpoint that has or had something to tell."""
        return self._shares

    def flooding(self, count: int = 3) -> list[Share]:
        """Endpoints that opened more than they may, or than anybody answered, before the last sweep; most first."""
        found = [share for share in self._shares if share.flooded >= FLOOD]
        return sorted(found, key=lambda share: (-share.flooded, share.endpoint))[:count]

    def at_quota(self) -> list[Share]:
        """Endpoints that get no new connections."""
        return [s for s in self._shares if self.quota and self._limited[s.endpoint] and s.settled >= self.quota]

    def _read(self) -> Records:
        return np.frombuffer(b"".join(values for _, values, _ in self._usage.chunks(MAX_ENDPOINTS)), CT_USAGE)

    def _tell(self) -> None:
        assert self._offset is not None
        limits = ((self._offset + self.quota) & 0xFFFFFFFF).astype(np.uint32)
        limits[limits == 0] = 1  # 0 says: no quota
        if not self.quota:
            limits[:] = 0
        limits[~self._limited] = 0
        everywhere = np.ones(MAX_ENDPOINTS, bool)
        changed = np.flatnonzero(everywhere if self._written is None else limits != self._written)
        if len(changed):
            self._limits.update_batch({struct.pack("<I", i): struct.pack("<I", int(limits[i])) for i in changed})
        self._written = limits


def _per_endpoint(entries: Records) -> Counts:
    return np.bincount(entries["endpoint_id"] & (MAX_ENDPOINTS - 1), minlength=MAX_ENDPOINTS)


def _signed(counts: Counts) -> Counts:
    """The kernel counts in 32 bits."""
    return ((counts + 2**31) & 0xFFFFFFFF) - 2**31
