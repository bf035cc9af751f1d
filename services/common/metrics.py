"""The HTTP endpoint for machines: Prometheus metrics and the probes of a kubelet.

Registries are made in `app.py` and passed in: importing a module registers nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from services.common.errors import Unavailable
from services.common.targets import split_address

HEARTBEAT_SECONDS = 1.0
STUCK_SECONDS = 15.0
"""A process whose event loop has not turned for so long is not alive."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # WSGIServer asks a name server for its own name here; nobody needs it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""


class MetricsServer:
    """While the context is open: `/metrics` (a registry), `/healthz` (the event loop turns) and `/readyz` (`problem`
    says why not). An empty address serves nothing.

    It answers from threads, so that a process that hangs can still be seen to.
    """

    def __init__(self, address: str, registry: CollectorRegistry, problem: Callable[[], str] = str) -> None:
        self._address, self._registry, self._problem = address, registry, problem
        self._server: WSGIServer | None = None
        self._heart: asyncio.Task[None] | None = None
        self._beat = time.monotonic()

    @property
    def port(self) -> int:
        """The bound port, 0 where nothing is served."""
        return self._server.server_port if self._server else 0

    async def __aenter__(self) -> Self:
        if self._address:
            host, port = split_address(self._address, "metrics_address")
            kind = _Server6 if ":" in host else _Server
            try:
                self._server = make_server(host, port, self._application(), kind, _Silent)
            except OSError as error:
                raise Unavailable(f"metrics_address: cannot listen on {self._address}: {error.strerror}") from error
            threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
            self._heart = asyncio.create_task(self._live(), name="heartbeat")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._heart:
            self._heart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._heart
        if self._server:
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()

    async def _live(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _application(self) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
        metrics = make_wsgi_app(self._registry)

        def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            match environ.get("PATH_INFO"):
                case "/healthz":
                    stuck = time.monotonic() - self._beat >= STUCK_SECONDS
                    return _answer(start, "the event loop does not turn" if stuck else "")
                case "/readyz":
                    return _answer(start, self._problem())
                case _:
                    answer: Iterable[bytes] = metrics(environ, start)
                    return answer

        return application


def _answer(start: Callable[..., Any], problem: str) -> Iterable[bytes]:
    status = "503 Service Unavailable" if problem else "200 OK"
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{problem or 'ok'}\n".encode()]
