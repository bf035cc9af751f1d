"""Numbers for things with names: the same name, the same number on every run, so that pinned maps keep their meaning.

A number is a hash of the name; a collision probes on. Two names that collide may swap numbers between runs, which the
resync after a restart repairs; with 31 bits that is one run in thousands.
"""

from __future__ import annotations

import hashlib


class StableNumbers:
    """Allocates numbers in [low, high]."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._size = low, high - low + 1
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, name: str) -> int | None:
        """The number of a name, now and until it is given back; None when all are taken."""
        known = self._numbers.get(name)
        if known is not None:
            return known
        start = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % self._size
        for step in range(min(self._size, len(self._names) + 1)):
            number = self._low + (start + step) % self._size
            if number not in self._names:
                self._numbers[name] = number
                self._names[number] = name
                return number
        return None

    def give_back(self, name: str) -> None:
        """Free the number of a name; unknown names are fine."""
        number = self._numbers.pop(name, None)
        if number is not None:
            del self._names[number]

    def name(self, number: int) -> str | None:
        """The name behind a number."""
        return self._names.get(number)
