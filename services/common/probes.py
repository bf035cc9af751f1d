"""`/healthz` and `/readyz` over plain HTTP, as kubelets ask for them. They tell nothing that is worth hiding."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from services.common.errors import Unavailable
from services.common.metrics import split_address

MAX_REQUEST = 4096
READ_SECONDS = 5.0


class ProbeServer:
    """Serves while the context is open; an empty address serves nothing. `problem`: why not ready, '' = ready."""

    def __init__(self, address: str, problem: Callable[[], str]) -> None:
        self._address, self._problem = address, problem
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The bound port, 0 where nothing is served."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server else 0

    async def __aenter__(self) -> Self:
        if self._address:
            host, port = split_address(self._address, "health_address")
            try:
                self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST)
            except OSError as error:
                raise Unavailable(f"health_address: cannot listen on {self._address}: {error.strerror}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                line = await reader.readuntil(b"\r\n")
                while await reader.readuntil(b"\r\n") != b"\r\n":
                    pass
            status, text = self._answer(line.split(b" "))
            body = f"{text}\n".encode()
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # not a kubelet
        finally:
            writer.close()

    def _answer(self, words: list[bytes]) -> tuple[str, str]:
        path = words[1].partition(b"?")[0] if len(words) > 1 else b""
        if words[0] not in (b"GET", b"HEAD"):
            return "405 Method Not Allowed", "only GET"
        if path == b"/healthz":
            return "200 OK", "ok"  # that an answer comes at all is what it says
        if path == b"/readyz":
            problem = self._problem()
            return ("503 Service Unavailable", problem) if problem else ("200 OK", "ready")
        return "404 Not Found", "/healthz or /readyz"
