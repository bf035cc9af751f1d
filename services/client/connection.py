"""One server, reached over TLS: calls with deadlines, failures as errors of the tree, reconnects that read certificates
again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import grpc.aio

from services.common.errors import Unavailable
from services.common.grpc_errors import error_from_rpc
from services.common.retry import Backoff
from services.common.tls import TlsFiles, channel

T = TypeVar("T")

CALL_SECONDS = 5.0
"""Deadline of a call that has one answer."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server is: "host:port" or "unix:///path"; `tls` None means plaintext.

    Over TLS the server must show a certificate of its role, whatever the address it is reached by.
    """

    address: str
    tls: TlsFiles | None = None
    find: Callable[[], Awaitable[str]] | None = None
    """Where the server is now, asked at every reconnect; `address` is then only a name for people. Raises errors of the
    tree."""


class Connection:
    """Base of the clients; an asynchronous context manager. `deadline` is in seconds and holds for every call with one
    answer; streams last until they are left.

    Errors are those of `services.common.errors`: `Unavailable` (away, or the deadline passed: may be tried again),
    `Invalid` (names the field), `NotFound`, `Denied`, `Exhausted`, `Conflict`, `Internal`.
    """

    role: ClassVar[str]
    """Of the server's certificate."""

    def __init__(self, target: Target, deadline: float = CALL_SECONDS, backoff: Backoff | None = None) -> None:
        self.target, self.deadline = target, deadline
        self._backoff = backoff or Backoff(initial=0.1, maximum=5.0)
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._missing = ""
        """Why there is no channel yet."""

    def stub(self, there: grpc.aio.Channel) -> Any:
        """The generated stub on a channel."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        try:
            await self.reconnect()
        except Unavailable:
            if self.target.find is None:
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel:
            await self._channel.close()

    async def reconnect(self) -> None:
        """A fresh channel, which reads the certificates again: they may be others now. Calls under way may finish."""
        try:
            address = await self.target.find() if self.target.find else self.target.address
        except Unavailable as error:
            self._missing = str(error)
            raise
        old = self._channel
        self._channel = channel(address, self.target.tls, self.role)
        self._stub = self.stub(self._channel)
        if old:
            await old.close(grace=self.deadline)

    def _connected(self) -> None:
        if self._stub is None:
            raise Unavailable(self._missing or f"{self.target.address}: not found yet")

    async def call(self, make: Callable[[Any, float], Awaitable[T]]) -> T:
        """`make(stub, deadline)`'s answer."""
        self._connected()
        try:
            return await make(self._stub, self.deadline)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise Unavailable(f"{self.target.address}: the channel was closed while calling ({error})") from error

    async def stream(self, make: Callable[[Any], AsyncIterable[T]]) -> AsyncIterator[T]:
        """`make(stub)`'s answers, until the server ends the stream; leaving the loop cancels the call."""
        self._connected()
        call = make(self._stub)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()  # type: ignore[attr-defined]
