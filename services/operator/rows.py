"""A row of the address table, as far as the operator looks at it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """Who has an address: an identity, on a node, a pod of a namespace ('' for the node itself)."""

    identity: int
    node: str
    namespace: str
    pod: str
