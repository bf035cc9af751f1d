"""What dictionary entries are called, as numbers that rows can be counted by."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np

from services.flows.columns import Array
from services.flows.dictionary import Dictionary

T = TypeVar("T", bound=Hashable)

MAX_NAMES = 1 << 18
"""Names remembered per label; pods may come and go for ever."""


class Namer(Generic[T]):
    """Number of a dictionary entry -> number of its name, decided once per entry."""

    def __init__(self, name_of: Callable[[T], str]) -> None:
        self._name_of = name_of
        self._numbers: dict[str, int] = {"": 0}
        self.names: list[str] = [""]
        self._table = np.zeros(0, np.int64)
        self._seen = np.zeros(0, np.uint32)

    def table(self, entries: Dictionary[T]) -> Array:
        """One number per entry."""
        size = entries.size
        if len(self.names) > MAX_NAMES:  # names of long ago; those that are still there come again
            self._numbers, self.names = {"": 0}, [""]
            self._seen[:] = 0
            self._table[:] = 0
        if len(self._table) < size:
            grown = 2 * size
            self._table = np.concatenate([self._table, np.zeros(grown - len(self._table), np.int64)])
            self._seen = np.concatenate([self._seen, np.zeros(grown - len(self._seen), np.uint32)])
        for number in np.flatnonzero(entries.generation[:size] != self._seen[:size]).tolist():
            content = entries[number]
            self._table[number] = self._number(self._name_of(content)) if content is not None else 0
        self._seen[:size] = entries.generation[:size]
        return self._table

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
        return number
