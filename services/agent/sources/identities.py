"""The identity service as this node sees it: a stream of identities and addresses in, references and endpoints out.

The stream resumes where it broke off; after a reset the difference to the last snapshot is told. When the service is
away the last known state stays in force: enforcement never waits for it. Calls raise errors of the tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from services.common import tls
from services.common.errors import CiliateError, Unavailable
from services.common.grpc_errors import error_from_rpc
from services.common.log import get_logger
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc
from services.common.retry import Backoff
from services.model.addresses import IPNetwork
from services.model.identity import Identity, NumericIdentity
from services.model.labels import LabelError, Labels
from services.model.objects import (
    IdentityDeleted,
    IdentityUpserted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    Synced,
    Update,
)

T = TypeVar("T")

CALL_TIMEOUT_SECONDS = 5.0
RETRY_KEEPALIVE_SECONDS = 1.0


@dataclass(slots=True)
class Stale:
    """What was known before a snapshot and has not been named by it yet."""

    identities: set[NumericIdentity]
    prefixes: set[IPNetwork]


class IdentityClient:
    """A `Source` named "identities", and the calls of one node. Use as a context manager."""

    def __init__(self, target: str, files: tls.TlsFiles | None, node: str, backoff: Backoff | None = None) -> None:
        self._target, self._files, self._node = target, files, node
        self._backoff = backoff or Backoff(initial=0.1, maximum=5.0)
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._revision = 0
        self._history = ""
        self._identities: dict[NumericIdentity, Identity] = {}
        self._entries: dict[IPNetwork, IpEntry] = {}
        self._errors: dict[str, str] = {}
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
        return self._identities

    @property
    def entries(self) -> Mapping[IPNetwork, IpEntry]:
        """The cluster's address table as known."""
        return self._entries

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel:
            await self._channel.close()

    async def _connect(self) -> None:
        """A fresh channel reads the certificates again: they may have been rotated since."""
        old = self._channel
        self._channel = tls.channel(self._target, self._files, "identity")
        self._stub = identity_pb2_grpc.IdentityServiceStub(self._channel)  # type: ignore[no-untyped-call]
        if old:
            # Calls that are under way may finish.
            await old.close(grace=CALL_TIMEOUT_SECONDS)

    # -- the stream ------------------------------------------------------------------------------------------------

    async def updates(self) -> AsyncIterator[Update]:
        """See `Source`. Reconnects for ever."""
        synced = False
        while True:
            try:
                async for update in self._once():
                    if isinstance(update, Synced):
                        self._healthy()
                        if synced:
                            continue
                        synced = True
                    yield update
                problem: CiliateError = Unavailable("the stream ended")
            except CiliateError as error:
                problem = error
            self._unhealthy(problem)
            await self._backoff.wait()
            await self._connect()

    async def _once(self) -> AsyncIterator[Update]:
        """One Watch call, from the last revision on. Yields `Synced` at each in-sync marker."""
        stale: Stale | None = None
        call = self._stub.Watch(
            pb.WatchRequest(resume_revision=self._revision, resume_history=self._history, node=self._node)
        )
        try:
            async for message in call:
                if message.reset:
                    stale = Stale(set(self._identities), set(self._entries))
                for update in self._read(message, stale or Stale(set(), set())):
                    yield update
                if message.in_sync:
                    for update in self._sweep(stale or Stale(set(), set())):
                        yield update
                    stale, self._history = None, message.history
                    yield Synced(self.name)
                if stale is None and message.revision:
                    # Half a snapshot is no place to resume from.
                    self._revision = message.revision
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()

    def _read(self, message: pb.WatchResponse, stale: Stale) -> list[Update]:
        updates: list[Update] = []
        for row in message.identities:
            try:
                identity = Identity(NumericIdentity(row.id), Labels.parse(row.labels))
            except LabelError as error:
                self._log.error("identity refused", identity=row.id, problem=str(error))
                continue
            stale.identities.discard(identity.id)
            if self._identities.get(identity.id) != identity:
                self._identities[identity.id] = identity
                updates.append(IdentityUpserted(identity))
        for endpoint in message.endpoints:
            entry = _entry(endpoint)
            stale.prefixes.discard(entry.prefix)
            if self._entries.get(entry.prefix) != entry:
                self._entries[entry.prefix] = entry
                updates.append(IpUpserted(entry))
        for text in message.deleted_prefixes:
            updates += self._drop_prefix(ipaddress.ip_network(text))
        for number in message.deleted_identities:
            updates += self._drop_identity(NumericIdentity(number))
        return updates

    def _sweep(self, stale: Stale) -> list[Update]:
        gone: list[Update] = []
        for prefix in stale.prefixes:
            gone += self._drop_prefix(prefix)
        for number in stale.identities:
            gone += self._drop_identity(number)
        return gone

    def _drop_prefix(self, prefix: IPNetwork) -> list[Update]:
        return [IpDeleted(prefix)] if self._entries.pop(prefix, None) else []

    def _drop_identity(self, number: NumericIdentity) -> list[Update]:
        return [IdentityDeleted(number)] if self._identities.pop(number, None) else []

    def _unhealthy(self, problem: CiliateError) -> None:
        if not self._errors:
            self._log.warning("identity service unavailable", target=self._target, problem=str(problem))
        self._errors["identity service"] = str(problem)

    def _healthy(self) -> None:
        self._backoff.reset()
        if self._errors:
            self._log.info("identity service available")
        self._errors.clear()

    # -- calls -----------------------------------------------------------------------------------------------------

    async def allocate(self, labels: Labels) -> Identity:
        """The identity of a label set; this node holds a reference until `release`."""
        request = pb.AllocateRequest(labels=labels.texts(), node=self._node)
        answer = await self._call(lambda stub: stub.Allocate(request, timeout=CALL_TIMEOUT_SECONDS))
        return Identity(NumericIdentity(answer.identity.id), Labels.parse(answer.identity.labels))

    async def release(self, identity: NumericIdentity) -> None:
        """Give this node's reference back."""
        request = pb.ReleaseRequest(id=identity, node=self._node)
        await self._call(lambda stub: stub.Release(request, timeout=CALL_TIMEOUT_SECONDS))

    async def register(self, entry: IpEntry) -> None:
        """Tell the cluster who has an address."""
        endpoint = pb.Endpoint(
            prefix=str(entry.prefix),
            identity=entry.identity,
            node=entry.node,
            tunnel_endpoint=str(entry.tunnel or ""),
            namespace=entry.namespace,
            pod=entry.pod,
        )
        request = pb.RegisterEndpointRequest(endpoint=endpoint)
        await self._call(lambda stub: stub.RegisterEndpoint(request, timeout=CALL_TIMEOUT_SECONDS))

    async def deregister(self, prefix: IPNetwork) -> None:
        """Tell the cluster that nobody has an address any more."""
        request = pb.DeregisterEndpointRequest(prefix=str(prefix), node=self._node)
        await self._call(lambda stub: stub.DeregisterEndpoint(request, timeout=CALL_TIMEOUT_SECONDS))

    async def keep_alive(self, on_lapse: Callable[[], None]) -> None:
        """Keep this node's references for ever; `on_lapse` when they are gone and must all be made again."""
        request, known = pb.KeepAliveRequest(node=self._node), 0
        while True:
            pause = RETRY_KEEPALIVE_SECONDS
            with contextlib.suppress(Unavailable):
                answer = await self._call(lambda stub: stub.KeepAlive(request, timeout=CALL_TIMEOUT_SECONDS))
                if known and answer.lease != known:
                    self._log.warning("the node's references are gone, making them again")
                    on_lapse()
                known, pause = answer.lease, max(answer.ttl_seconds / 4, 0.25)
            await asyncio.sleep(pause)

    async def _call(self, make: Callable[[Any], Awaitable[T]]) -> T:
        try:
            return await make(self._stub)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise Unavailable(f"identity service: the channel was closed while calling ({error})") from error


def _entry(row: pb.Endpoint) -> IpEntry:
    return IpEntry(
        prefix=ipaddress.ip_network(row.prefix),
        identity=NumericIdentity(row.identity),
        node=row.node,
        tunnel=ipaddress.ip_address(row.tunnel_endpoint) if row.tunnel_endpoint else None,
        namespace=row.namespace,
        pod=row.pod,
    )
