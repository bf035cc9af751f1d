"""Who has an address and port where several Services want it: the oldest, then the first by name, whatever came first.

Wildcards (every other port of an address) are shared: an address may carry several Services on different ports.
"""

from __future__ import annotations

from collections.abc import Iterable

Name = tuple[str, str]
Order = tuple[str, str, str]
"""(creation time, namespace, name)"""


class Claims:
    """Frontend keys (bytes of the kernel's map) and the Services that want them."""

    def __init__(self) -> None:
        self._single: dict[bytes, Name] = {}
        self._several: dict[bytes, dict[Name, Order]] = {}
        self._of: dict[Name, tuple[str, tuple[bytes, ...]]] = {}

    def want(self, name: Name, created: str, keys: Iterable[bytes]) -> set[Name]:
        """A Service wants exactly these now; who else wins or loses by that, and must be looked at again."""
        created_before, had = self._of.pop(name, (created, ()))
        before, wanted = frozenset(had), frozenset(keys)
        if wanted:
            self._of[name] = (created, tuple(wanted))
        affected: set[Name] = set()
        for key in before - wanted:
            affected |= self._leave(key, name)
        for key in wanted if created_before != created else wanted - before:
            affected |= self._join(key, name, (created, *name))
        return affected - {name}

    def owner(self, key: bytes) -> Name | None:
        """Who has it."""
        several = self._several.get(key)
        if several is not None:
            return min(several, key=lambda name: several[name])
        return self._single.get(key)

    def _join(self, key: bytes, name: Name, order: Order) -> set[Name]:
        several = self._several.get(key)
        if several is None:
            single = self._single.setdefault(key, name)
            if single == name:
                return set()
            del self._single[key]
            several = self._several[key] = {single: (self._of[single][0], *single)}
        several[name] = order
        return set(several)

    def _leave(self, key: bytes, name: Name) -> set[Name]:
        several = self._several.get(key)
        if several is None:
            self._single.pop(key, None)
            return set()
        several.pop(name, None)
        left = set(several)
        if len(several) == 1:
            (self._single[key],) = several
            del self._several[key]
        return left
