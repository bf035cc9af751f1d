"""One map's three verbs: put, delete, prune. Idempotent; what fails is kept and tried again.

Restart and steady state are one path: `prune` compares what should be with what is and applies the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from services.agent.datapath.syscall import MapType
from services.common.errors import CiliateError


class MapAccess(Protocol):
    """What is needed of a map; `maps.PinnedMap` and `fake_map.FakeMap` have it."""

    name: str
    type: int

    def update_batch(self, entries: Mapping[bytes, bytes]) -> None:
        """Write entries; raises Exhausted when the map is full."""
        ...

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Remove entries; absent ones are a success."""
        ...

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """All entries."""
        ...


class MapReconciler:
    """Applies changes to one map. `errors` counts failed calls, `pending` what is to be tried again."""

    def __init__(self, target: MapAccess) -> None:
        self.map = target
        self.errors = 0
        self.last_error = ""
        self.pending: dict[bytes, bytes | None] = {}
        """Key -> value that should be there, None = nothing should."""

    def read_actual(self) -> dict[bytes, bytes]:
        """What the kernel has. Zero entries of arrays are absent entries."""
        array = self.map.type in (MapType.ARRAY, MapType.PERCPU_ARRAY)
        return {key: value for key, value in self.map.items() if not array or any(value)}

    def apply(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> bool:
        """Write `puts` in their order, then remove `deletes`. False: something failed and is pending."""
        removals = list(deletes)
        for key in (*puts, *removals):
            self.pending.pop(key, None)
        ok = self._try(puts)
        return self._try_remove(removals) and ok

    def retry(self) -> bool:
        """Try what is pending again; True when nothing is left."""
        pending, self.pending = self.pending, {}
        # Removals first: they are what makes room in a full map.
        removed = self._try_remove([key for key, value in pending.items() if value is None])
        return self._try({key: value for key, value in pending.items() if value is not None}) and removed

    def prune(self, desired: Mapping[bytes, bytes]) -> tuple[int, int]:
        """Make the map equal to `desired`. Returns how many entries were written and removed."""
        puts, deletes = self.compare(desired)
        self.apply(puts, deletes)
        return len(puts), len(deletes)

    def compare(self, desired: Mapping[bytes, bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """(to write, to remove) so that the map equals `desired`. Nothing is pending any more."""
        actual = self.read_actual()
        self.pending.clear()
        puts = {key: value for key, value in desired.items() if actual.get(key) != value}
        return puts, [key for key in actual if key not in desired]

    def _try(self, puts: Mapping[bytes, bytes]) -> bool:
        if not puts:
            return True
        try:
            self.map.update_batch(puts)
        except CiliateError as error:
            self._failed(error)
            self.pending.update(puts)  # writing those again that did get in does no harm
            return False
        return True

    def _try_remove(self, keys: list[bytes]) -> bool:
        if not keys:
            return True
        try:
            self.map.delete_batch(keys)
        except CiliateError as error:
            self._failed(error)
            self.pending.update(dict.fromkeys(keys))
            return False
        return True

    def _failed(self, error: CiliateError) -> None:
        self.errors += 1
        self.last_error = str(error)
