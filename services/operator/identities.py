"""What the identity service knows, followed over its stream; and the two things that the operator asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc.aio

from services.common import tls
from services.common.errors import CiliateError, Unavailable
from services.common.grpc_errors import error_from_rpc
from services.common.log import get_logger
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc
from services.common.retry import Backoff
from services.common.tls import TlsFiles
from services.operator.rows import Row

CALL_SECONDS = 5.0
WATCHER = "ciliate-operator"
log = get_logger("identities")


class IdentityTable:
    """Identities (number -> label texts) and rows (prefix -> row). `changed` is called after every message."""

    def __init__(self, target: str, files: TlsFiles | None) -> None:
        self._target, self._files = target, files
        self._identities: dict[int, tuple[str, ...]] = {}
        self._rows: dict[str, Row] = {}
        self._revision, self._history = 0, ""
        self._backoff = Backoff(initial=0.2, maximum=10.0)
        self.synced = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None
        self.problem = ""

    @property
    def identities(self) -> Mapping[int, tuple[str, ...]]:
        """All cluster identities."""
        return self._identities

    @property
    def rows(self) -> Mapping[str, Row]:
        """The whole address table."""
        return self._rows

    async def run(self) -> None:
        """Follow the stream for ever. A new channel each time: certificates may have been replaced."""
        while True:
            try:
                async with tls.channel(self._target, self._files, "identity") as channel:
                    await self._follow(identity_pb2_grpc.IdentityServiceStub(channel))  # type: ignore[no-untyped-call]
                raise Unavailable("the stream ended")
            except CiliateError as error:
                if str(error) != self.problem:
                    log.warning("identity service unavailable", target=self._target, problem=str(error))
                self.problem = str(error)
            await self._backoff.wait()

    async def _follow(self, stub: Any) -> None:
        request = pb.WatchRequest(resume_revision=self._revision, resume_history=self._history, node=WATCHER)
        fresh: tuple[dict[int, tuple[str, ...]], dict[str, Row]] | None = None
        try:
            async for message in stub.Watch(request):
                if message.reset:
                    fresh = {}, {}
                _apply(message, *(fresh or (self._identities, self._rows)))
                if message.in_sync:
                    if fresh is not None:
                        (self._identities, self._rows), fresh = fresh, None
                    self._history, self.problem = message.history, ""
                    self._backoff.reset()
                    self.synced.set()
                if fresh is None and message.revision:
                    self._revision = message.revision
                self.changed()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def forget_node(self, node: str) -> None:
        """A node is no part of the cluster any more."""
        await self._call(lambda stub: stub.ForgetNode(pb.ForgetNodeRequest(node=node), timeout=CALL_SECONDS))

    async def collect(self) -> int:
        """Have identities collected that are due; how many went."""
        answer = await self._call(lambda stub: stub.Collect(pb.CollectRequest(), timeout=CALL_SECONDS))
        return int(answer.collected)

    async def referenced_by(self, identity: int) -> list[str]:
        """Nodes that refer to an identity."""
        answer = await self._call(lambda stub: stub.Get(pb.GetRequest(id=identity), timeout=CALL_SECONDS))
        return list(answer.referenced_by)

    async def _call(self, make: Callable[[Any], Any]) -> Any:
        async with tls.channel(self._target, self._files, "identity") as channel:
            try:
                return await make(identity_pb2_grpc.IdentityServiceStub(channel))  # type: ignore[no-untyped-call]
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error) from error


def _apply(message: pb.WatchResponse, identities: dict[int, tuple[str, ...]], rows: dict[str, Row]) -> None:
    identities.update({each.id: tuple(each.labels) for each in message.identities})
    for each in message.endpoints:
        rows[each.prefix] = Row(each.identity, each.node, each.namespace, each.pod)
    for prefix in message.deleted_prefixes:
        rows.pop(prefix, None)
    for number in message.deleted_identities:
        identities.pop(number, None)
