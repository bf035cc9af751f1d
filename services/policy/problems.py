"""What is wrong with a policy document: every problem at once, each with the field it is about and what to do.

Input: the readers of this package. Output: one `PolicyInvalid` per document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_PROBLEMS = 50
"""A hostile document may hold thousands of mistakes; the first ones are enough to act on."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `path` is the field's path from the document's root (`spec.ingress[0].toPorts[1].ports`)."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class PolicyInvalid(ValueError):
    """A document that cannot be accepted; `problems` lists why, in document order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))
