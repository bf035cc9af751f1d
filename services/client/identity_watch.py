"""Identities and addresses of the cluster, followed over reconnects: a stream that resumes where it broke off.

After a reset the difference to what was known is told, deletions included: whoever consumes the changes needs to know
nothing about reconnects. While the service is away the last known state stays.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from services.client.connection import Connection
from services.common.errors import CiliateError, Unavailable
from services.common.log import get_logger
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.retry import Backoff
from services.model.addresses import IPAddress, IPNetwork, prefix_of
from services.model.identity import Identity, NumericIdentity
from services.model.labels import LabelError, Labels
from services.model.objects import ContainerPort, IdentityDeleted, IdentityUpserted, IpDeleted, IpEntry, IpUpserted

_SHARED = 1 << 14
"""Values that rows of the address table have in common, remembered for sharing."""
Change = IdentityUpserted | IdentityDeleted | IpUpserted | IpDeleted


@dataclass(frozen=True, slots=True)
class InSync:
    """Everything that was there when the stream began has been told."""


@dataclass(slots=True)
class _Stale:
    """What was known before a snapshot and has not been named by it yet."""

    identities: set[NumericIdentity] = field(default_factory=set)
    prefixes: set[IPNetwork] = field(default_factory=set)


class IdentityWatch:
    """`changes()` for ever; `identities` and `entries` are what is known now.

    `node` names the watcher in the service's log. `on_problem` hears why the stream broke off, and None when it is
    whole again.
    """

    def __init__(
        self,
        connection: Connection,
        node: str,
        backoff: Backoff,
        on_problem: Callable[[CiliateError | None], None] = lambda problem: None,
    ) -> None:
        self._connection, self._node, self._backoff, self._on_problem = connection, node, backoff, on_problem
        self._revision, self._history = 0, ""
        self._identities: dict[NumericIdentity, Identity] = {}
        self._entries: dict[IPNetwork, IpEntry] = {}
        self._log = get_logger("client.identities")

    @property
    def identities(self) -> Mapping[NumericIdentity, Identity]:
        """Every cluster identity known."""
        return self._identities

    @property
    def entries(self) -> Mapping[IPNetwork, IpEntry]:
        """The cluster's address table as known."""
        return self._entries

    async def changes(self) -> AsyncIterator[Change | InSync]:
        """What exists, `InSync`, then what changes; another `InSync` after each reconnect."""
        while True:
            try:
                async for change in self._once():
                    if isinstance(change, InSync):
                        self._backoff.reset()
                        self._on_problem(None)
                    yield change
                problem: CiliateError = Unavailable("the stream ended")
            except CiliateError as error:
                problem = error
            self._on_problem(problem)
            await self._backoff.wait()
            try:
                await self._connection.reconnect()
            except Unavailable as error:  # not found: the old channel may come back
                self._on_problem(error)

    async def _once(self) -> AsyncIterator[Change | InSync]:
        """One Watch call, from the last revision on."""
        stale: _Stale | None = None
        request = pb.WatchRequest(resume_revision=self._revision, resume_history=self._history, node=self._node)
        async for message in self._connection.stream(lambda stub: stub.Watch(request)):
            if message.reset:
                stale = _Stale(set(self._identities), set(self._entries))
            for change in self._read(message, stale or _Stale()):
                yield change
            if message.in_sync:
                for change in self._sweep(stale or _Stale()):
                    yield change
                stale, self._history = None, message.history
                yield InSync()
            if stale is None and message.revision:
                # Half a snapshot is no place to resume from.
                self._revision = message.revision

    def _read(self, message: pb.WatchResponse, stale: _Stale) -> list[Change]:
        changes: list[Change] = []
        for row in message.identities:
            try:
                identity = Identity(NumericIdentity(row.id), Labels.parse(row.labels))
            except LabelError as error:
                self._log.error("identity refused", identity=row.id, problem=str(error))
                continue
            stale.identities.discard(identity.id)
            if self._identities.get(identity.id) != identity:
                self._identities[identity.id] = identity
                changes.append(IdentityUpserted(identity))
        for endpoint in message.endpoints:
            entry = ip_entry(endpoint)
            stale.prefixes.discard(entry.prefix)
            if self._entries.get(entry.prefix) != entry:
                self._entries[entry.prefix] = entry
                changes.append(IpUpserted(entry))
        for text in message.deleted_prefixes:
            changes += self._drop_prefix(prefix_of(text))
        for number in message.deleted_identities:
            changes += self._drop_identity(NumericIdentity(number))
        return changes

    def _sweep(self, stale: _Stale) -> list[Change]:
        gone: list[Change] = []
        for prefix in stale.prefixes:
            gone += self._drop_prefix(prefix)
        for number in stale.identities:
            gone += self._drop_identity(number)
        return gone

    def _drop_prefix(self, prefix: IPNetwork) -> list[Change]:
        return [IpDeleted(prefix)] if self._entries.pop(prefix, None) else []

    def _drop_identity(self, number: NumericIdentity) -> list[Change]:
        return [IdentityDeleted(number)] if self._identities.pop(number, None) else []


@lru_cache(_SHARED)
def _tunnel(text: str) -> IPAddress | None:
    """A node's address: all of its pods share it."""
    return ipaddress.ip_address(text) if text else None


@lru_cache(_SHARED)
def _identity(number: int) -> NumericIdentity:
    """The number of a workload: all of its pods share it."""
    return NumericIdentity(number)


def ip_entry(row: pb.Endpoint) -> IpEntry:
    """A row of the address table in the vocabulary of the model."""
    return IpEntry(
        prefix=prefix_of(row.prefix),
        identity=_identity(row.identity),
        node=sys.intern(row.node),
        tunnel=_tunnel(row.tunnel_endpoint),
        namespace=sys.intern(row.namespace),
        pod=row.pod,
        ports=tuple(ContainerPort(sys.intern(each.name), each.port, each.protocol) for each in row.ports),
        workload=(sys.intern(row.workload_kind), sys.intern(row.workload)) if row.workload else ("", ""),
    )
