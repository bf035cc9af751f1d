"""The Prometheus endpoint. Registries are made in `app.py` and passed in: importing a module registers nothing."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, start_http_server

from services.common.errors import Invalid, Unavailable


def split_address(address: str, field: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port"; raises `Invalid` naming `field`."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise Invalid(f"{field}: {address!r} is not host:port")
    return host.strip("[]") or "0.0.0.0", int(port)


class MetricsServer:
    """Serves a registry at `/metrics` while the context is open; an empty address serves nothing."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        self._address, self._registry = address, registry
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The bound port, 0 where nothing is served."""
        return int(self._server.server_port) if self._server else 0

    async def __aenter__(self) -> Self:
        if self._address:
            host, port = split_address(self._address, "metrics_address")
            try:
                self._server, self._thread = start_http_server(port, host, registry=self._registry)
            except OSError as error:
                raise Unavailable(f"metrics_address: cannot listen on {self._address}: {error.strerror}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
