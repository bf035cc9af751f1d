"""What filters are made of: runs of rows, look-up tables over dictionaries, conditions.

A condition turns a run of rows into a mask. What depends on a dictionary entry (a pod's name, a label, a path) is
decided once per entry and then gathered over the column, so a filter costs nanoseconds per row, whatever it asks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import re2

from services.flows.columns import DICTIONARY_OF, Array, Columns, length
from services.flows.dictionary import Dictionaries, Dictionary
from services.flows.entries import Party

T = TypeVar("T", bound=Hashable)

MAX_PATTERN = 4096
_QUIET = re2.Options()
_QUIET.log_errors = False
FEW = 8
"""Copying rows out pays where at most one in so many is left."""


class FilterError(ValueError):
    """A filter that cannot be built; the message names the field and the value."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A run of rows, seen as their first or their second facet (`services.flows.facets`)."""

    columns: Columns
    dictionaries: Dictionaries
    facet: int = 0

    def __len__(self) -> int:
        return length(self.columns)

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def taken(self, index: Array) -> Rows:
        """Some of the rows; columns are copied when somebody looks at them."""
        return Rows(_Taken(self.columns, index), self.dictionaries, self.facet)

    def none(self) -> Array:
        """A mask that matches nothing."""
        return np.zeros(len(self), np.bool_)

    def all(self) -> Array:
        """A mask that matches everything."""
        return np.ones(len(self), np.bool_)


class _Taken(Columns):
    def __init__(self, columns: Columns, index: Array) -> None:
        super().__init__(time_ns=columns["time_ns"][index])
        self._columns, self._index = columns, index

    def __missing__(self, name: str) -> Array:
        self[name] = self._columns[name][self._index]
        return self[name]


Condition = Callable[[Rows], Array]


class Table(Generic[T]):
    """A predicate over one dictionary's contents, remembered per number until the number changes its meaning."""

    def __init__(self, predicate: Callable[[T], bool]) -> None:
        self._predicate = predicate
        self._answers = np.zeros(0, np.bool_)
        self._seen = np.zeros(0, np.uint32)

    def answers(self, dictionary: Dictionary[T]) -> Array:
        """Number -> does its content satisfy the predicate? "None" (0) does not."""
        size = dictionary.size
        if len(self._answers) < size:
            grown = max(size, 2 * len(self._answers))
            self._answers = np.concatenate([self._answers, np.zeros(grown - len(self._answers), np.bool_)])
            self._seen = np.concatenate([self._seen, np.zeros(grown - len(self._seen), np.uint32)])
        for number in np.flatnonzero(dictionary.generation[:size] != self._seen[:size]).tolist():
            content = dictionary[number]
            self._answers[number] = content is not None and self._predicate(content)
        self._seen[:size] = dictionary.generation[:size]
        return self._answers


def where_entry(column: str, predicate: Callable[[T], bool]) -> Condition:
    """The rows whose `column` names an entry that satisfies `predicate`."""
    table: Table[T] = Table(predicate)
    name = "nodes" if column == "node" else DICTIONARY_OF[column]

    def condition(rows: Rows) -> Array:
        answers = table.answers(getattr(rows.dictionaries, name))
        if not answers.any():
            return rows.none()
        found: Array = answers[rows[column]]
        return found

    return condition


def party(column: str, predicate: Callable[[Party], bool]) -> Condition:
    """`where_entry` for the columns `source` and `destination`."""
    return where_entry(column, predicate)


def is_one_of(column: str, values: list[int]) -> Condition:
    """The rows whose column holds one of a few numbers."""
    wanted = np.array(sorted(set(values)), np.int64)
    return lambda rows: isin(rows[column], wanted)


def isin(values: Array, wanted: Array) -> Array:
    """`np.isin`, several times as fast for one wanted number and for columns of small numbers."""
    if len(wanted) == 1:
        return np.asarray(values == wanted[0])
    if values.dtype.itemsize > 2:
        return np.isin(values, wanted)
    table = np.zeros(1 << (8 * values.dtype.itemsize), np.bool_)
    table[wanted[(wanted >= 0) & (wanted < len(table))]] = True
    found: Array = table[values]
    return found


def all_of(conditions: list[Condition]) -> Condition:
    """AND; matches everything where there is no condition. Each looks only at the rows that the ones before left."""

    def condition(rows: Rows) -> Array:
        if not conditions:
            return rows.all()
        mask = conditions[0](rows)
        for each in conditions[1:]:
            index = np.flatnonzero(mask)
            if not len(index):
                break
            if len(index) * FEW > len(mask):
                mask = mask & each(rows)
            else:
                mask = rows.none()
                mask[index[each(rows.taken(index))]] = True
        return mask

    return condition


class Pattern(Protocol):
    """A compiled regular expression."""

    def search(self, text: str) -> object | None:
        """A match anywhere in the text, or None."""
        ...


def regex(text: str, field: str) -> Pattern:
    """A compiled RE2 pattern, whose search takes time linear in the text; raises `FilterError`."""
    if len(text) > MAX_PATTERN:
        raise FilterError(f"{field}: the expression is longer than {MAX_PATTERN} characters")
    try:
        found: Pattern = re2.compile(text, _QUIET)
        return found
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0]
        reason = said.decode(errors="replace") if isinstance(said, bytes) else "not UTF-8"
        raise FilterError(f"{field}: invalid regular expression {text!r}: {reason}") from error
