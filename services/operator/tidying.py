"""What outlived its reason: nodes of the identity service that the API server has not, identities without pods. Pure.

Time is an argument. Whatever is found is looked at for a while before anything is done about it: objects and rows come
over two streams, and one may be behind.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from services.model.objects import IpEntry

K = TypeVar("K", bound=Hashable)


class Lasting(Generic[K]):
    """Tells what has been so for `seconds` without a break."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[K, float] = {}

    def due(self, present: Iterable[K], now: float) -> set[K]:
        """Those of `present` that were so at every look for long enough."""
        self._since = {key: self._since.get(key, now) for key in present}
        return {key for key, since in self._since.items() if now - since >= self._seconds}


def strangers(rows: Iterable[IpEntry], nodes: Collection[str]) -> set[str]:
    """Nodes that have rows and no Node object. None while there is no Node at all: then something else is wrong."""
    return {row.node for row in rows if row.node not in nodes} if nodes else set()


def unused(identities: Iterable[int], rows: Iterable[IpEntry]) -> set[int]:
    """Identities that no address has."""
    return set(identities) - {row.identity for row in rows}


def leaks(suspects: Mapping[int, Collection[str]], nodes: Collection[str]) -> tuple[set[str], list[tuple[int, str]]]:
    """(nodes that are gone and refer to identities all the same, (identity, node) of live nodes).

    A live node's agent alone knows whether it still needs a reference: it gives leaks back by itself. One that stays
    for so long that it is seen here is told, not taken away.
    """
    gone = {node for found in suspects.values() for node in found if node not in nodes} if nodes else set()
    return gone, sorted((number, node) for number, found in suspects.items() for node in found if node in nodes)
