"""Dictionaries: content <-> number, with use counts, so that memory is bounded by what rows still point to.

A number is used again once nobody needs its content; `generation` tells that it happened, so whoever keeps numbers
(caches, look-up tables, a stream's other end) can see in one vectorised comparison which of them went stale.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

import numpy as np

from services.flows.columns import Array
from services.flows.entries import Decision, L7Record, NodeRef, Party, ProcessRef, ServiceRef

T = TypeVar("T", bound=Hashable)

INITIAL_SLOTS = 64


class Dictionary(Generic[T]):
    """Numbers for contents. 0 is "none" and never given out."""

    def __init__(self) -> None:
        self._contents: list[T | None] = [None]
        self._numbers: dict[T, int] = {}
        self._free: list[int] = []
        self._uses: Array = np.zeros(INITIAL_SLOTS, np.int64)
        self.generation: Array = np.zeros(INITIAL_SLOTS, np.uint32)
        """Per number: how often its meaning has changed. At least as long as `size`."""

    @property
    def size(self) -> int:
        """One more than the highest number ever given out."""
        return len(self._contents)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> T | None:
        """The content of a number; None for 0, for numbers never given out and for freed ones."""
        return self._contents[number] if 0 <= number < len(self._contents) else None

    def intern(self, content: T) -> int:
        """The number of a content, made if need be. Unused until somebody retains it."""
        number = self._numbers.get(content)
        if number is not None:
            return number
        if self._free:
            number = self._free.pop()
            self._contents[number] = content
        else:
            number = len(self._contents)
            self._contents.append(content)
            if number >= len(self._uses):
                self._uses = np.concatenate([self._uses, np.zeros_like(self._uses)])
                self.generation = np.concatenate([self.generation, np.zeros_like(self.generation)])
        self._numbers[content] = number
        self.generation[number] += 1
        return number

    def retain(self, numbers: Array) -> None:
        """Count one more use of each of these distinct numbers."""
        self._uses[numbers] += 1

    def release(self, numbers: Array) -> None:
        """Count one use less of each of these distinct numbers; what nobody uses any more is forgotten."""
        self._uses[numbers] -= 1
        for number in numbers[self._uses[numbers] <= 0].tolist():
            content = self._contents[number]
            if number and content is not None:
                del self._numbers[content]
                self._contents[number] = None
                self.generation[number] += 1
                self._uses[number] = 0
                self._free.append(number)

    def contents(self) -> Iterator[tuple[int, T]]:
        """Every number with its content."""
        return ((number, content) for number, content in enumerate(self._contents) if content is not None)


class Dictionaries:
    """The dictionaries of one store."""

    def __init__(self) -> None:
        self.parties: Dictionary[Party] = Dictionary()
        self.decisions: Dictionary[Decision] = Dictionary()
        self.services: Dictionary[ServiceRef] = Dictionary()
        self.requests: Dictionary[L7Record] = Dictionary()
        self.processes: Dictionary[ProcessRef] = Dictionary()
        self.nodes: Dictionary[NodeRef] = Dictionary()

    def of(self, name: str) -> AnyDictionary:
        """The dictionary that `columns.DICTIONARY_OF` names."""
        found: AnyDictionary = getattr(self, name)
        return found


AnyDictionary = (
    Dictionary[Party] | Dictionary[Decision] | Dictionary[ServiceRef] | Dictionary[L7Record] | Dictionary[ProcessRef]
)


def distinct(numbers: Array, size: int) -> Array:
    """The distinct ones of `numbers` (all below `size`), ascending, by the cheaper of two ways."""
    if size > 8 * len(numbers):
        return np.unique(numbers)
    marks = np.zeros(size, np.bool_)
    marks[numbers] = True
    return np.flatnonzero(marks)


class Uses:
    """The numbers that one holder (a segment, a batch, a stream) has retained, each once."""

    def __init__(self, dictionaries: Dictionaries) -> None:
        self._dictionaries = dictionaries
        self._held: dict[str, Array] = {}

    def add(self, dictionary: str, numbers: Array) -> None:
        """Retain those of `numbers` (any order, with repetitions) that are not held yet."""
        target = self._dictionaries.of(dictionary)
        held = self._held.get(dictionary)
        if held is None or len(held) < target.size:
            grown = np.zeros(max(2 * target.size, INITIAL_SLOTS), np.bool_)
            if held is not None:
                grown[: len(held)] = held
            held = self._held[dictionary] = grown
        fresh = numbers[~held[numbers]]
        if len(fresh):
            fresh = distinct(fresh, target.size)
            held[fresh] = True
            target.retain(fresh)

    def held(self, dictionary: str) -> Array:
        """The numbers held, ascending."""
        held = self._held.get(dictionary)
        return np.flatnonzero(held) if held is not None else np.zeros(0, np.int64)

    def drop(self, dictionary: str, number: int) -> None:
        """Release one number that is held."""
        self._held[dictionary][number] = False
        self._dictionaries.of(dictionary).release(np.array([number]))

    def release(self) -> None:
        """Release everything."""
        for dictionary in self._held:
            self._dictionaries.of(dictionary).release(self.held(dictionary))
        self._held.clear()
