"""Collection of translations: pairs whose time is over, or whose backend is gone, leave the table in batches.

Both entries of a pair have the same time. Collection gives ports back: the kernel takes none that is still in the
table. A client of a backend that no slice has any more is not left to wait: its next packet finds another one.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import numpy as np

from services.agent.abi.nat import NAT_ENTRY, NAT_KEY, NatFlags
from services.agent.datapath.gc import Collector, Mask, Records, Table

GRACE_NS = 2_000_000_000
"""Beyond the end, so that no packet is between looking an entry up and prolonging it."""


class NatCollector(Collector):
    """Of the translation table. `live_backends`, when given, returns the (address, port) pairs of all Service backends
    as 18 bytes each."""

    def __init__(self, table: Table, live_backends: Callable[[], Set[bytes]] | None = None) -> None:
        super().__init__(table, NAT_KEY, NAT_ENTRY)
        self._live = live_backends
        self._backends: Set[bytes] | None = None

    def _begin(self) -> None:
        self._backends = self._live() if self._live is not None else None

    def _over(self, keys: Records, entries: Records, now_ns: int) -> Mask:
        over = super()._over(keys, entries, now_ns - GRACE_NS)
        if self._backends is not None:
            originals = (entries["service_id"] != 0) & ((entries["flags"] & NatFlags.ANSWER) == 0)
            for i in np.flatnonzero(originals & ~over):
                over[i] = entries["daddr"][i].tobytes() + entries["dport"][i].tobytes() not in self._backends
        return over
