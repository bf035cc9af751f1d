"""The store in etcd: translation between `Store` and etcd's v3 API, and of its errors into ours.

It speaks through the stubs of `aetcd.rpc`, not through `aetcd.Client`: that client's watch hides the revision of
each response and compaction, swallows errors of callbacks and queues without bound, and its transactions know no
comparison over a range. `DESIGN.md` has the details.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from aetcd import rpc

from services.common.errors import CiliateError, Internal, Unavailable
from services.common.tls import TlsFiles
from services.identity.batch import Batcher, Transaction
from services.identity.keys import KeyRange
from services.identity.store import (
    Absent,
    Batch,
    Compacted,
    Compare,
    Delete,
    Entry,
    Event,
    Exists,
    Holds,
    LeaseGone,
    Outcome,
    Page,
    Put,
    Removed,
    Unchanged,
)

_OPTIONS = [
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A member that vanished without a word is noticed by these; etcd refuses pings more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.use_local_subchannel_pool", 1),
]
# A member cut off from the majority ends such streams instead of keeping silent.
_HAS_LEADER = (("hasleader", "true"),)
_AWAY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}


class EtcdStore:
    """A client of one etcd cluster. `timeout` (seconds) bounds every request; watches have no end.

    `endpoints` are "host:port"; one is used until it fails, then the next. `tls` None means plaintext.
    """

    def __init__(self, endpoints: Sequence[str], tls: TlsFiles | None = None, timeout: float = 5.0) -> None:
        self._endpoints = tuple(endpoints)
        self._tls, self._timeout = tls, timeout
        self._channels: list[grpc.aio.Channel] = []
        self._current = 0
        self._batcher = Batcher(self._send)

    async def __aenter__(self) -> Self:
        self._channels = [self._open(endpoint) for endpoint in self._endpoints]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._batcher.close()
        for channel in self._channels:
            await channel.close()

    def _open(self, endpoint: str) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        ca, cert, key = self._tls.read()
        return grpc.aio.secure_channel(endpoint, grpc.ssl_channel_credentials(ca, key, cert), options=_OPTIONS)

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Put | Delete], otherwise: Sequence[bytes] = ()
    ) -> Outcome:
        """See `Store`."""
        return await self._batcher.transact(Transaction(compares, then, otherwise))

    async def _send(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        """One request for all of them; what `Batcher` relies on."""
        if len(transactions) == 1:
            answer = await self._call(rpc.KVStub, "Txn", _transaction(transactions[0]))
            return [_outcome(answer, answer.header.revision)]
        nested = [rpc.RequestOp(request_txn=_transaction(transaction)) for transaction in transactions]
        answer = await self._call(rpc.KVStub, "Txn", rpc.TxnRequest(success=nested))
        return [_outcome(response.response_txn, answer.header.revision) for response in answer.responses]

    async def page(self, keys: KeyRange, revision: int = 0, limit: int = 0) -> Page:
        """See `Store`. Reads are linearizable."""
        request = rpc.RangeRequest(key=keys.first, range_end=keys.end, revision=revision, limit=limit)
        answer = await self._call(rpc.KVStub, "Range", request)
        entries = [_entry(kv) for kv in answer.kvs]
        return Page(entries, answer.header.revision, entries[-1].key + b"\0" if answer.more else None)

    async def grant(self, ttl_seconds: int) -> int:
        """See `Store`."""
        answer = await self._call(rpc.LeaseStub, "LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl_seconds))
        return int(answer.ID)

    async def revoke(self, lease: int) -> None:
        """See `Store`."""
        with contextlib.suppress(LeaseGone):
            await self._call(rpc.LeaseStub, "LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease))

    async def keep_alive(self, lease: int) -> int:
        """See `Store`."""
        answer = await self._call(rpc.LeaseStub, "LeaseKeepAlive", rpc.LeaseKeepAliveRequest(ID=lease), streams=True)
        return int(answer.TTL)

    async def watch(self, keys: KeyRange, revision: int) -> AsyncIterator[Batch]:
        """See `Store`."""
        create = rpc.WatchCreateRequest(
            key=keys.first, range_end=keys.end, start_revision=revision, progress_notify=True
        )
        try:
            call = rpc.WatchStub(self._channel()).Watch(metadata=_HAS_LEADER)
            try:
                # A member that accepts the connection and then says nothing must not hold us for ever.
                async with asyncio.timeout(self._timeout):
                    await call.write(rpc.WatchRequest(create_request=create))
                    answer = await call.read()
                while answer is not grpc.aio.EOF:
                    _check_watch(answer)
                    yield _batch(answer)
                    answer = await call.read()
            finally:
                call.cancel()
        except TimeoutError as error:
            raise self._away(f"no answer within {self._timeout:g} s") from error
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error
        raise self._away("it ended the watch")

    def _channel(self) -> grpc.aio.Channel:
        return self._channels[self._current % len(self._channels)]

    async def _call(self, stub: Any, method: str, request: Any, streams: bool = False) -> Any:
        used = self._current
        try:
            rpc_method = getattr(stub(self._channels[used]), method)
            if not streams:
                return await rpc_method(request, timeout=self._timeout)
            return await _first(rpc_method(iter((request,)), timeout=self._timeout))
        except grpc.aio.AioRpcError as error:
            raise self._translate(error, used) from error

    def _translate(self, error: grpc.aio.AioRpcError, used: int | None = None) -> CiliateError:
        code, details = error.code(), error.details() or error.code().name
        if code == grpc.StatusCode.NOT_FOUND and "lease" in details:
            return LeaseGone(details)
        if code == grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
            return Compacted(details)
        if code in _AWAY:
            return self._away(details, used)
        return Internal(f"etcd refused a request: {code.name}: {details}")

    def _away(self, reason: str, used: int | None = None) -> Unavailable:
        """The error for an etcd that does not serve; the next request tries the next endpoint."""
        used = self._current if used is None else used
        if used == self._current:
            self._current = (used + 1) % len(self._endpoints)
        return Unavailable(f"etcd at {self._endpoints[used]} does not serve: {reason}")


async def _first(call: Any) -> Any:
    try:
        async for answer in call:
            return answer
    finally:
        call.cancel()
    raise Internal("etcd ended a lease stream without an answer")


def _check_watch(answer: Any) -> None:
    if answer.compact_revision:
        raise Compacted(f"history before revision {answer.compact_revision} was compacted")
    if answer.canceled:
        raise Unavailable(f"etcd ended the watch: {answer.cancel_reason or 'no reason given'}")


def _batch(answer: Any) -> Batch:
    events = tuple(_event(event) for event in answer.events)
    # The header may be ahead of the events (they wait in etcd's buffers); a progress notice has no events.
    return Batch(events[-1].mod_revision if events else answer.header.revision, events)


def _event(event: Any) -> Event:
    if event.type == rpc.Event.DELETE:
        return Removed(event.kv.key, event.kv.mod_revision)
    return _entry(event.kv)


def _entry(kv: Any) -> Entry:
    return Entry(kv.key, kv.value, kv.mod_revision, kv.lease)


def _transaction(transaction: Transaction) -> Any:
    return rpc.TxnRequest(
        compare=[_compare(compare) for compare in transaction.compares],
        success=[_operation(write) for write in transaction.then],
        failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=key)) for key in transaction.otherwise],
    )


def _outcome(answer: Any, revision: int) -> Outcome:
    found: dict[bytes, Entry] = {}
    if not answer.succeeded:
        kvs = (kv for response in answer.responses for kv in response.response_range.kvs)
        found = {kv.key: _entry(kv) for kv in kvs}
    return Outcome(answer.succeeded, revision, found)


def _compare(compare: Compare) -> Any:
    match compare:
        case Absent(KeyRange(first, end)):
            # etcd compares every key of the range; one that exists has a creation revision, so none may exist.
            return rpc.Compare(
                key=first, range_end=end, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=0
            )
        case Absent(key):
            return rpc.Compare(key=key, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=0)
        case Exists(key):
            return rpc.Compare(key=key, target=rpc.Compare.CREATE, result=rpc.Compare.GREATER, create_revision=0)
        case Holds(key, value):
            return rpc.Compare(key=key, target=rpc.Compare.VALUE, result=rpc.Compare.EQUAL, value=value)
        case Unchanged(key, mod_revision):
            return rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=mod_revision)


def _operation(write: Put | Delete) -> Any:
    if isinstance(write, Put):
        return rpc.RequestOp(request_put=rpc.PutRequest(key=write.key, value=write.value, lease=write.lease))
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=write.key))
