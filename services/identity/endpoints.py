"""The address table: which prefix belongs to which identity, behind which node.

Rows live under their node's lease. A row may name only an identity that its node refers to, which also keeps that
identity from being collected; and a prefix that one node holds cannot be taken by another.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.errors import Conflict, NotFound, Unavailable
from services.identity.keys import Keys
from services.identity.leases import NodeLeases, View
from services.identity.store import Compare, Delete, Exists, LeaseGone, Put, Store, Unchanged
from services.identity.wire import row_node
from services.model.identity import is_reserved

ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Registration:
    """A row to be written: `value` is the serialised message, the rest is taken from it."""

    prefix: str
    identity: int
    node: str
    value: bytes


class EndpointRegistry:
    """Writes and deletes rows on behalf of nodes."""

    def __init__(self, store: Store, keys: Keys, view: View, leases: NodeLeases) -> None:
        self._store, self._keys, self._view, self._leases = store, keys, view, leases

    async def register(self, wanted: Registration) -> int:
        """Write the row; returns its revision. Raises `NotFound` (no reference), `Conflict` (another node's)."""
        row_key = self._keys.endpoint(wanted.prefix)
        reference_key = self._keys.reference(wanted.identity, wanted.node)
        known = self._view.state.rows.get(wanted.prefix)
        value, revision = (known.value, known.mod_revision) if known else (b"", 0)
        for _ in range(ATTEMPTS):
            # What is read from memory may be old: another node's row is refused only on the store's word.
            ours = not value or row_node(value) == wanted.node
            lease = await self._leases.of(wanted.node)
            compares: list[Compare] = [Unchanged(row_key, revision if ours else -1)]
            if not is_reserved(wanted.identity):
                compares.append(Exists(reference_key))
            try:
                outcome = await self._store.transact(
                    compares, [Put(row_key, wanted.value, lease)], [row_key, reference_key]
                )
            except LeaseGone:
                self._leases.forget(wanted.node, lease)
                continue
            if outcome.succeeded:
                return outcome.revision
            if reference_key not in outcome.found and not is_reserved(wanted.identity):
                raise NotFound(
                    f"endpoint.identity: node {wanted.node} holds no reference to identity {wanted.identity}; "
                    "allocate it first"
                )
            entry = outcome.found.get(row_key)
            value, revision = (entry.value, entry.mod_revision) if entry else (b"", 0)
            if value and row_node(value) != wanted.node:
                raise Conflict(
                    f"endpoint.prefix: {wanted.prefix} belongs to node {row_node(value)}; it is free once that node "
                    "deregisters it or is gone for the time of its lease"
                )
        raise Unavailable(f"endpoint.prefix: {wanted.prefix} is being changed all the time; try again")

    async def deregister(self, prefix: str, node: str) -> int:
        """Delete the node's row; one that is not there, or is another node's, is no error.

        Returns the revision to wait for, 0 for none.
        """
        row_key = self._keys.endpoint(prefix)
        known = self._view.state.rows.get(prefix)
        value, revision = (known.value, known.mod_revision) if known else (b"", -1)
        for _ in range(ATTEMPTS):
            if value and row_node(value) != node:
                revision = -1
            outcome = await self._store.transact([Unchanged(row_key, revision)], [Delete(row_key)], [row_key])
            if outcome.succeeded:
                return outcome.revision
            entry = outcome.found.get(row_key)
            if entry is None or row_node(entry.value) != node:
                return 0
            value, revision = entry.value, entry.mod_revision
        raise Unavailable(f"prefix: {prefix} is being changed all the time; try again")
