"""healthCheckNodePort: what a load balancer in front of the nodes asks each of them (policy-semantics 8.6).

One small HTTP server per Service of type LoadBalancer with externalTrafficPolicy Local. 200 while the node has an
active endpoint, else 503. The engine says which servers there should be, and what they answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Mapping

from services.agent.calc.services import HealthCheck
from services.common.log import get_logger

REQUEST_SECONDS = 5.0
MAX_REQUEST = 8192
RETRY_SECONDS = 5.0


class HealthChecks:
    """`wanted` is asked after every call of `changed`. `errors`: "namespace/name" -> why its server is not there."""

    def __init__(self, wanted: Callable[[], Iterable[HealthCheck]]) -> None:
        self._wanted = wanted
        self._changed = asyncio.Event()
        self._servers: dict[int, asyncio.Server] = {}
        self._answers: dict[int, HealthCheck] = {}
        self._errors: dict[str, str] = {}
        self._log = get_logger("health-checks")

    @property
    def errors(self) -> Mapping[str, str]:
        """What to complain about; empty = healthy."""
        return self._errors

    @property
    def ports(self) -> frozenset[int]:
        """Where servers are."""
        return frozenset(self._servers)

    def changed(self) -> None:
        """Services or their endpoints may be others."""
        self._changed.set()

    async def run(self) -> None:
        """Keep the servers that should be there, for ever."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    # A port that was taken may be free later.
                    await asyncio.wait_for(self._changed.wait(), RETRY_SECONDS if self._errors else None)
                self._changed.clear()
                await self.settle()
        finally:
            for server in self._servers.values():
                server.close()

    async def settle(self) -> None:
        """Make the servers those that should be there."""
        self._answers = {}
        self._errors = {}
        for check in sorted(self._wanted(), key=lambda check: (check.namespace, check.name)):
            other = self._answers.setdefault(check.port, check)
            if other is not check:
                self._errors[f"{check.namespace}/{check.name}"] = (
                    f"healthCheckNodePort {check.port} belongs to {other.namespace}/{other.name}; choose another"
                )
        for port in self._servers.keys() - self._answers.keys():
            self._servers.pop(port).close()
        for port in self._answers.keys() - self._servers.keys():
            await self._open(port, self._answers[port])

    async def _open(self, port: int, check: HealthCheck) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(port, reader, writer)

        try:
            self._servers[port] = await asyncio.start_server(serve, None, port, limit=MAX_REQUEST)
        except OSError as error:
            self._errors[f"{check.namespace}/{check.name}"] = (
                f"healthCheckNodePort {port}: cannot listen: {error.strerror}; is another process there?"
            )
            self._log.warning("health check port is taken", port=port, error=str(error))

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_SECONDS):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(self.answer(port))
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def answer(self, port: int) -> bytes:
        """The HTTP answer on a port, whatever was asked."""
        check = self._answers.get(port)
        count = check.local_endpoints if check else 0
        body = json.dumps(
            {
                "service": {"namespace": check.namespace if check else "", "name": check.name if check else ""},
                "localEndpoints": count,
            }
        ).encode()
        head = (
            f"HTTP/1.1 {'200 OK' if count else '503 Service Unavailable'}\r\n"
            f"Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
            f"X-Load-Balancing-Endpoint-Weight: {count}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body
