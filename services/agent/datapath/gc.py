"""Conntrack collection: entries whose time is over are removed in batches and leave a close record.

    ct map --chunks--> numpy: expires_ns < now --take, one by one--> close records --> `emit`

The kernel ignores expired entries by itself (it starts anew on them), so collection is about memory and about the
flow records, never about correctness. An entry that came to life between sweep and take is put back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.agent.abi.conntrack import CT_ENTRY, CT_KEY, CtFlags, CtScope
from services.agent.abi.events import EVENT_VERSION, FLOW_EVENT, EventType
from services.agent.datapath.maps import BPF_NOEXIST
from services.common.errors import CiliateError
from services.model.verdict import Direction
from services.model.verdict import Protocol as IpProtocol

Records = NDArray[Any]
CHUNK = 8192
PAUSE_EVERY = 512
"""Removals between two turns of the event loop (a few milliseconds of system calls)."""


class ConntrackMap(Protocol):
    """What is needed of the map; `maps.PinnedMap` has it."""

    def chunks(self, count: int = ...) -> Any:
        """Yields (keys, values, how many)."""
        ...

    def take(self, key: bytes) -> bytes | None:
        """Remove an entry and return it."""
        ...

    def update(self, key: bytes, value: bytes, flags: int = ...) -> None:
        """Write an entry."""
        ...


@dataclass(slots=True)
class Sweep:
    """One pass over the map."""

    entries: int = 0
    removed: int = 0
    closed: int = 0
    """Close records emitted."""


class ConntrackCollector:
    """Sweeps the map every `interval_s`. `emit` takes FLOW_EVENT records; `live_backends`, when given, returns the
    (address, port) pairs of all Service backends as 18 bytes each, so that choices of vanished ones are forgotten."""

    def __init__(
        self,
        conntrack: ConntrackMap,
        emit: Callable[[Records], None],
        interval_s: float = 5.0,
        live_backends: Callable[[], frozenset[bytes]] | None = None,
    ) -> None:
        self._map, self._emit, self._interval, self._live = conntrack, emit, interval_s, live_backends
        self.entries = 0
        """How many there were at the last sweep."""
        self.removed_total = 0
        self.errors = 0

    async def run(self) -> None:
        """Sweep until cancelled. A failed sweep is counted and tried again at the next turn."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.sweep(time.monotonic_ns())
            except CiliateError:
                self.errors += 1

    async def sweep(self, now_ns: int) -> Sweep:
        """One pass. Raises CiliateError when the map cannot be read."""
        result = Sweep()
        live = self._live() if self._live is not None else None
        for keys, values, count in self._map.chunks(CHUNK):
            result.entries += count
            found = np.frombuffer(keys, CT_KEY), np.frombuffer(values, CT_ENTRY)
            await self._collect(keys, self._over(*found, now_ns, live), now_ns, result)
            await asyncio.sleep(0)
        self.entries = result.entries - result.removed
        self.removed_total += result.removed
        return result

    @staticmethod
    def _over(keys: Records, entries: Records, now_ns: int, live: frozenset[bytes] | None) -> NDArray[np.int64]:
        over = entries["expires_ns"] < now_ns
        if live is not None:
            for i in np.flatnonzero((keys["scope"] == CtScope.SERVICE) & ~over):
                over[i] = entries["nat_address"][i].tobytes() + entries["nat_port"][i].tobytes() not in live
        return np.flatnonzero(over)

    async def _collect(self, keys: bytes, over: NDArray[np.int64], now_ns: int, result: Sweep) -> None:
        size = CT_KEY.itemsize
        for start in range(0, len(over), PAUSE_EVERY):
            taken: list[tuple[bytes, bytes]] = []
            for i in over[start : start + PAUSE_EVERY]:
                key = keys[i * size : (i + 1) * size]
                value = self._map.take(key)
                if value is not None:
                    taken.append((key, value))
            self._report(taken, now_ns, result)
            await asyncio.sleep(0)

    def _report(self, taken: list[tuple[bytes, bytes]], now_ns: int, result: Sweep) -> None:
        if not taken:
            return
        keys = np.frombuffer(b"".join(key for key, _ in taken), CT_KEY)
        entries = np.frombuffer(b"".join(value for _, value in taken), CT_ENTRY)
        revived = (entries["expires_ns"] >= now_ns) & (keys["scope"] != CtScope.SERVICE)
        for i in np.flatnonzero(revived):
            self._put_back(*taken[i])
        result.removed += len(taken) - int(revived.sum())
        closing = ~revived & (keys["scope"] != CtScope.SERVICE) & ((entries["flags"] & CtFlags.CLOSED) == 0)
        if closing.any():
            records = close_records(keys[closing], entries[closing], now_ns)
            result.closed += len(records)
            self._emit(records)

    def _put_back(self, key: bytes, value: bytes) -> None:
        try:
            self._map.update(key, value, BPF_NOEXIST)
        except CiliateError:
            self.errors += 1  # a packet was quicker and made a new one


def close_records(keys: Records, entries: Records, now_ns: int) -> Records:
    """What the kernel would have said had these connections ended before its eyes (`fill_connection` in trace.h)."""
    records = np.zeros(len(keys), FLOW_EVENT)
    opened = entries["direction"] == Direction.EGRESS
    icmp = (keys["protocol"] == IpProtocol.ICMP) | (keys["protocol"] == IpProtocol.ICMPV6)
    records["type"] = EventType.CLOSE
    records["version"] = EVENT_VERSION
    records["endpoint_id"] = entries["endpoint_id"]
    records["time_ns"] = now_ns
    records["saddr"] = np.where(opened[:, None], keys["local"], keys["remote"])
    records["daddr"] = np.where(opened[:, None], keys["remote"], keys["local"])
    source = np.where(opened, keys["local_port"], keys["remote_port"]).astype("<u2").byteswap()
    target = np.where(opened, keys["remote_port"], keys["local_port"]).astype("<u2").byteswap()
    records["sport"] = np.where(icmp, entries["tcp_flags"], source)
    records["dport"] = np.where(icmp, 0, target)
    records["protocol"] = keys["protocol"]
    records["tcp_flags"] = np.where(icmp, 0, entries["tcp_flags"])
    records["direction"] = entries["direction"]
    records["ct_state"] = 1
    records["src_identity"] = np.where(opened, entries["self_identity"], entries["peer_identity"])
    records["dst_identity"] = np.where(opened, entries["peer_identity"], entries["self_identity"])
    for name in ("rule_id", "policy_revision", "match_type", "service_id", "rtt_us", "retransmits", "l7_ruleset"):
        records[name] = entries[name]
    records["packets"] = entries["packets"]
    records["bytes"] = entries["bytes"]
    lifetime = (now_ns - entries["created_ns"].astype(np.int64)) // 1000
    records["duration_us"] = np.clip(lifetime, 0, 2**32 - 1)
    return records
