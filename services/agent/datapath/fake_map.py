"""A stand-in for a pinned map in unit tests: the same methods, the kernel's manners, faults on request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from services.agent.datapath.syscall import MapType
from services.common.errors import Exhausted


class FakeMap:
    """An in-memory map with the kernel's manners: a bound, idempotent deletes, arrays that never shrink."""

    def __init__(self, name: str, max_entries: int = 1 << 20, kind: int = MapType.HASH) -> None:
        self.name, self.max_entries, self.type = name, max_entries, int(kind)
        self.entries: dict[bytes, bytes] = {}
        self.broken = False
        """True: every write fails, as when memory is short."""

    def update_batch(self, entries: Mapping[bytes, bytes]) -> None:
        """See `maps.PinnedMap`."""
        for key, value in entries.items():
            if self.broken or (key not in self.entries and len(self.entries) >= self.max_entries):
                raise Exhausted(f"map {self.name}: full")
            self.entries[key] = value

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """See `maps.PinnedMap`."""
        if self.broken:
            raise Exhausted(f"map {self.name}: no memory")
        for key in keys:
            self.entries.pop(key, None)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries."""
        return iter(list(self.entries.items()))

    def lookup(self, key: bytes) -> bytes | None:
        """One value."""
        return self.entries.get(key)
