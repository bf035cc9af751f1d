"""Numbers of endpoints on this node: one that was given back is used again as late as possible."""

from __future__ import annotations

from services.common.errors import Exhausted


class EndpointNumbers:
    """1 to `bound` - 1, each taken by at most one endpoint."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._taken: set[int] = set()
        self._last = 0

    def take(self) -> int:
        """The next free one; raises `Exhausted`."""
        for step in range(1, self._bound):
            number = (self._last + step - 1) % (self._bound - 1) + 1
            if number not in self._taken:
                self._taken.add(number)
                self._last = number
                return number
        raise Exhausted(f"this node has {len(self._taken)} endpoints, its maps hold no more")

    def hold(self, number: int) -> None:
        """An endpoint of an earlier run has it."""
        self._taken.add(number)
        self._last = max(self._last, number)

    def free(self, number: int) -> None:
        """Its endpoint is gone."""
        self._taken.discard(number)
