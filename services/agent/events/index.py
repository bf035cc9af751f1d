"""A look-up table from keys of a few 64-bit words to dictionary numbers, for whole columns at once.

Direct-mapped: one slot per hash value, the last key stays. It is a cache in front of a slow path that makes entries,
never wrong: keys are compared in full, and a number whose meaning changed since is a miss.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from services.flows.columns import Array
from services.flows.dictionary import Dictionary


class FastIndex:
    """`words` is how many 64-bit words a key has."""

    def __init__(self, words: int, dictionary: Dictionary[Any], bits: int = 14) -> None:
        self._dictionary = dictionary
        self._shift = np.uint64(64 - bits)
        # Secret odd multipliers: senders of packets choose keys, and shall not choose collisions.
        self._factors = [np.uint64(secrets.randbits(64) | 1) for _ in range(words)]
        self._keys: list[Array] = [np.zeros(1 << bits, np.uint64) for _ in range(words)]
        self._numbers: Array = np.zeros(1 << bits, np.uint32)
        self._generations: Array = np.zeros(1 << bits, np.uint32)

    def clear(self) -> None:
        """Forget everything."""
        self._numbers[:] = 0

    def _slots(self, key: list[Array]) -> Array:
        mixed = key[0] * self._factors[0]
        for word, factor in zip(key[1:], self._factors[1:], strict=True):
            mixed ^= mixed >> np.uint64(29)
            mixed += word * factor
        mixed ^= mixed >> np.uint64(32)
        mixed *= self._factors[0]
        slots: Array = (mixed >> self._shift).astype(np.intp)
        return slots

    def find(self, key: list[Array]) -> tuple[Array, Array]:
        """(numbers, places of the rows that are not known). Rows that are not known have the number 0."""
        slots = self._slots(key)
        numbers = self._numbers[slots]
        known = numbers != 0
        for word, column in zip(self._keys, key, strict=True):
            known &= word[slots] == column
        known &= self._generations[slots] == self._dictionary.generation[numbers]
        if known.all():
            return numbers, np.zeros(0, np.intp)
        return np.where(known, numbers, np.uint32(0)), np.flatnonzero(~known)

    def put(self, key: list[Array], numbers: Array) -> None:
        """Remember; of several keys for one slot one stays."""
        slots, chosen = np.unique(self._slots(key), return_index=True)
        for word, column in zip(self._keys, key, strict=True):
            word[slots] = column[chosen]
        self._numbers[slots] = numbers[chosen]
        self._generations[slots] = self._dictionary.generation[numbers[chosen]]
