"""The identity service as this node sees it: a source of identities and addresses, and the node's own references.

When the service is away the last known state stays in force: enforcement never waits for it. Calls raise errors of the
tree.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from services.client.connection import Target
from services.client.identities import Claim, Identities
from services.client.identity_watch import InSync
from services.common import tls
from services.common.errors import CiliateError
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.addresses import IPNetwork
from services.model.identity import Identity, NumericIdentity
from services.model.labels import Labels
from services.model.objects import IpEntry, Synced, Update


class IdentityClient:
    """A `Source` named "identities", and the calls of one node. Use as a context manager."""

    def __init__(
        self,
        target: str,
        files: tls.TlsFiles | None,
        node: str,
        backoff: Backoff | None = None,
        find: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._node = node
        self._service = Identities(Target(target, files, find), backoff=backoff)
        self._watch = self._service.watch(node, self._note)
        self._errors: dict[str, str] = {}
        self._restarted = asyncio.Event()
        self._log = get_logger("source.identities")

    @property
    def name(self) -> str:
        return "identities"

    @property
    def errors(self) -> Mapping[str, str]:
        """Empty while the stream is up."""
        return self._errors

    @property
    def identities(self) -> Mapping[NumericIdentity, Identity]:
        """Every cluster identity known."""
        return self._watch.identities

    @property
    def entries(self) -> Mapping[IPNetwork, IpEntry]:
        """The cluster's address table as known."""
        return self._watch.entries

    async def __aenter__(self) -> Self:
        await self._service.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._service.__aexit__(kind, error, trace)

    async def updates(self) -> AsyncIterator[Update]:
        """See `Source`. Reconnects for ever."""
        synced = False
        async for change in self._watch.changes():
            if not isinstance(change, InSync):
                yield change
                continue
            self._restarted.set()
            if not synced:
                synced = True
                yield Synced(self.name)

    def _note(self, problem: CiliateError | None) -> None:
        if problem is None:
            if self._errors:
                self._log.info("identity service available")
            self._errors.clear()
            return
        if not self._errors:
            self._log.warning("identity service unavailable", target=self._service.target.address, problem=str(problem))
        self._errors["identity service"] = str(problem)

    # -- calls -----------------------------------------------------------------------------------------------------

    async def allocate(self, labels: Labels) -> Claim:
        """The identity of a label set; this node holds a reference until `release`."""
        return await self._service.allocate(labels, self._node)

    async def release(self, identity: NumericIdentity, claim: int) -> bool:
        """Give this node's reference back, unless it was claimed again after `claim`; whether it was given back."""
        return await self._service.release(identity, self._node, claim)

    async def references(self) -> Mapping[NumericIdentity, int]:
        """Identities that this node holds -> its newest claim."""
        return await self._service.references(self._node)

    async def register(self, entry: IpEntry) -> None:
        """Tell the cluster who has an address."""
        await self._service.register(entry)

    async def deregister(self, prefix: IPNetwork) -> None:
        """Tell the cluster that nobody has an address any more."""
        await self._service.deregister(prefix, self._node)

    async def keep_alive(self, on_lapse: Callable[[], None]) -> None:
        """Keep this node's references for ever; `on_lapse` when they are gone and must all be made again.

        A stream that begins anew may tell of an etcd that was emptied: the lease is asked for then, not when it is due.
        """
        await self._service.keep_alive(self._node, on_lapse, self._restarted)
