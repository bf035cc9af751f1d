"""One lease per node: a dead node's references and address rows expire together.

All replicas serve all nodes, so the lease's number is itself in etcd, under that lease: who finds none makes one,
and a transaction decides between two replicas that do so at once.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from services.common.errors import Unavailable
from services.common.log import get_logger
from services.identity.keys import Keys
from services.identity.state import State
from services.identity.store import Absent, LeaseGone, Put, Store

log = get_logger("leases")

ATTEMPTS = 5


class View(Protocol):
    """Where the current state is read; it may lag behind the store by a moment."""

    @property
    def state(self) -> State:
        """The state as of now; another object after everything was read anew."""
        ...


class NodeLeases:
    """Finds, makes and renews the leases of nodes. `ttl_seconds`: how long a silent node's things are kept."""

    def __init__(self, store: Store, keys: Keys, view: View, ttl_seconds: int) -> None:
        self._store, self._keys, self._view = store, keys, view
        self._ttl_seconds = ttl_seconds
        self._known: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._claims: dict[str, asyncio.Lock] = {}

    async def of(self, node: str) -> int:
        """The node's lease, made if there is none."""
        lease = self._find(node)
        if lease:
            return lease
        async with self._claims.setdefault(node, asyncio.Lock()):
            lease = self._find(node) or await self._claim(node)
            self._known[node] = lease
        return lease

    def forget(self, node: str, lease: int) -> None:
        """The store said that this lease is gone; the view may still name it for a moment."""
        self._gone[node] = lease
        if self._known.get(node) == lease:
            del self._known[node]

    async def keep_alive(self, node: str) -> tuple[int, int]:
        """(seconds the lease lives on, lease). A lease that differs from last time: the node's things are gone."""
        for _ in range(ATTEMPTS):
            lease = await self.of(node)
            seconds = await self._store.keep_alive(lease)
            if seconds:
                return seconds, lease
            log.warning("a node's lease has expired, its references and endpoints are gone", node=node)
            self.forget(node, lease)
        raise Unavailable(f"node {node}: its lease expires as fast as it is made; is etcd's clock sound?")

    async def end(self, node: str) -> None:
        """The node is no more: its references and endpoints go with its lease. A node without one is no error."""
        lease = self._find(node)
        if lease:
            await self._store.revoke(lease)
            self.forget(node, lease)
            log.info("a node was forgotten", node=node)

    def _find(self, node: str) -> int:
        known = self._known.get(node) or self._view.state.leases.get(node, 0)
        return 0 if known == self._gone.get(node) else known

    async def _claim(self, node: str) -> int:
        key, lease = self._keys.lease(node), await self._store.grant(self._ttl_seconds)
        for _ in range(ATTEMPTS):
            try:
                outcome = await self._store.transact([Absent(key)], [Put(key, b"%d" % lease, lease)], [key])
            except LeaseGone:
                lease = await self._store.grant(self._ttl_seconds)
                continue
            if outcome.succeeded:
                log.info("node has a new lease", node=node, lease=f"{lease:x}")
                return lease
            if key in outcome.found:
                await self._store.revoke(lease)
                return int(outcome.found[key].value)
        raise Unavailable(f"node {node}: its lease could not be settled; try again")
