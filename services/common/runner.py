"""How a process lives: one root task, gRPC servers with health and reflection, a graceful end.

SIGTERM and SIGINT cancel the root task; everything that was opened is a context manager and closes in reverse. A
component that fails takes the process down with one line that says why: the supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common import heap, tracing
from services.common.config import BaseConfig, load
from services.common.errors import CiliateError, Unavailable
from services.common.grpc_errors import ErrorInterceptor
from services.common.log import configure
from services.common.targets import split_address

C = TypeVar("C", bound=BaseConfig)
GRACE_SECONDS = 2.0

_SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", 64 << 20),
]


class GrpcServer:
    """A gRPC server with health and reflection.

    `addresses`: "host:port" (port 0 = any) or "unix:///path" (created readable by root alone, a stale one is
    replaced). `register` adds the servicers. `service_names` are full names: reported by reflection and, together
    with the empty name, by health, as SERVING until `set_health` says otherwise. `credentials` comes from
    `services.common.tls.server_credentials`; None = plaintext.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        credentials: Callable[[], grpc.ServerCredentials] | None,
        register: Callable[[grpc.aio.Server], None],
        service_names: Sequence[str] = (),
        health_names: Sequence[str] = (),
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self._addresses, self._credentials = addresses, credentials
        self._register, self._service_names = register, tuple(service_names)
        self._health_names = ("", *self._service_names, *health_names)
        self._options = [*_SERVER_OPTIONS, *options]
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._sockets: list[str] = []
        self.ports: list[int] = []
        """Bound TCP ports, in the order of `addresses` (0 for unix sockets)."""

    async def __aenter__(self) -> Self:
        server = grpc.aio.server(
            interceptors=[*tracing.server_interceptors(), ErrorInterceptor()], options=self._options
        )
        self._register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*self._service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        for address in self._addresses:
            self.ports.append(self._bind(server, address))
        await server.start()
        for path in self._sockets:
            os.chmod(path, 0o600)
        for name in self._health_names:
            await self.set_health(name, True)
        self._server = server
        return self

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        if address.startswith("unix:"):
            path = address.removeprefix("unix:").removeprefix("//")
            try:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            except OSError as error:
                raise Unavailable(f"cannot listen on {address}: {error.strerror}") from error
            self._sockets.append(path)
        else:
            split_address(address, "cannot listen")  # gRPC takes a port modulo 65536, and 443 for none
        try:
            if self._credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._credentials())
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {address}: is another process there? ({error})") from error
        return 0 if address.startswith("unix:") else int(port)

    async def set_health(self, name: str, serving: bool) -> None:
        """Report `name` as SERVING or NOT_SERVING."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(name, status)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        await self._health.enter_graceful_shutdown()
        # Streams never end by themselves: after the grace they are cut, and clients resume elsewhere.
        await self._server.stop(GRACE_SECONDS if error is None else 0.1)
        for path in self._sockets:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def main(
    process: str,
    config_class: type[C],
    serve: Callable[[C], Coroutine[Any, Any, None]],
    arguments: Sequence[str],
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> int:
    """A process from its arguments to its exit code: configuration, logging, `serve` until told to stop.

    0 = told to stop; 1 = something that a person can fix, in one line on standard error.
    """
    try:
        config = load(config_class, arguments, process=process)
    except CiliateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    configure(process, config.log_level, config.log_format == "json")
    heap.keep_short()
    return run(serve(config), new_loop)


def run(
    main: Coroutine[Any, Any, None], new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
) -> int:
    """Run `main` until it ends, raises, or SIGTERM / SIGINT arrives. Returns the exit code.

    `new_loop`: asyncio's own loop for processes that speak netlink, which uvloop's sockets cannot.

    0 = ended or was told to; 1 = a `CiliateError`, printed as one line. Anything else is a defect and is raised.
    """

    async def root() -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        await main

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(root())
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 0
    except CiliateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BaseExceptionGroup as group:
        expected, rest = group.split(CiliateError)
        if rest is not None or expected is None:
            raise
        for leaf in _leaves(expected):
            print(f"error: {leaf}", file=sys.stderr)
        return 1
    return 0


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
