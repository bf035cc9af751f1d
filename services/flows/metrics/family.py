"""What a metric is made of: rows of a batch, the columns that tell series apart, their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.flows.columns import Array
from services.flows.metrics.batch import Batch


@dataclass(frozen=True, slots=True)
class Series:
    """Rows that count, the columns that tell series apart, and their labels."""

    rows: Array
    keys: Sequence[Array]
    labels: Callable[[Sequence[int]], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of a group. `options` are the group's, by name."""

    name: str
    text: str
    labels: tuple[str, ...]
    series: Callable[[Batch, Mapping[str, str]], Iterator[Series]]
    optional: Mapping[str, str] | None = None
    """Option -> label that it adds."""
    seconds: Callable[[Batch], Array] | None = None
    """A histogram of this measure."""
    swapped: bool = False
    """Its rows are responses, told from the side of who asked."""

    def label_names(self, options: Mapping[str, str]) -> tuple[str, ...]:
        """All labels of the family with these options."""
        added = [label for option, label in (self.optional or {}).items() if option in options]
        return (*self.labels, *added)
