"""The HTTP server: static files from memory, the API, headers that let a page do nothing but show.

Whoever may read flows may see the page. On loopback that is whoever is on the machine, in plaintext; on every other
address the relay's certificate is used and a client certificate of a reading role demanded, as gRPC does. Requests
on loopback must name a loopback host, so that no other site's name can be bent to this address (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import ipaddress
import mimetypes
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from services.common.errors import CiliateError, Denied, Exhausted, Invalid, Unavailable
from services.common.log import get_logger
from services.common.targets import split_address
from services.common.tls import TlsFiles
from services.flows.observer import READERS
from services.relay.web.api import Api
from services.relay.web.params import InvalidParameter

log = get_logger("web")

STATIC = Path(__file__).with_name("static")
HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "worker-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types ciliate",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
STATUS: tuple[tuple[type[CiliateError], int, str], ...] = (
    (Invalid, 400, "invalid"),
    (Denied, 403, "denied"),
    (Exhausted, 429, "exhausted"),
    (Unavailable, 503, "unavailable"),
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebServer:
    """Serves the page while the context is open; an empty address serves nothing."""

    def __init__(self, address: str, tls: TlsFiles | None, api: Api) -> None:
        """`tls` None: plaintext on every address (`insecure`)."""
        self._address, self._tls, self._api = address, tls, api
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        if not self._address:
            return self
        host, port = split_address(self._address, "web_address")
        host = "127.0.0.1" if self._address.startswith(":") else host
        local = is_loopback(host)
        context = None if local or self._tls is None else tls_context(self._tls)
        application = web.Application(middlewares=[_guard(local_only=local, roles=context is not None)])
        application.add_routes([*self._api.routes(), *_static_routes()])
        application.on_response_prepare.append(_headers)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise Unavailable(f"web_address: cannot listen on {self._address}: {error.strerror}") from error
        self.port = int(self._runner.addresses[0][1])
        name = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if context else 'http'}://{name}:{self.port}/"
        log.info("page ready", url=self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Demands a client certificate; the files are read again when they are replaced."""
    known = files.stamp()
    current = outer = _load(files)

    def fresh(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        nonlocal known, current
        try:
            stamp = files.stamp()
            if stamp != known:
                current, known = _load(files), stamp
        except (OSError, ssl.SSLError, Invalid):
            log.warning("certificate files unreadable; the ones in use stay", certificate=files.cert)
        connection.context = current

    outer.sni_callback = fresh
    return outer


def _load(files: TlsFiles) -> ssl.SSLContext:
    files.read()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _guard(*, local_only: bool, roles: bool) -> Any:
    """Who may ask, and errors as JSON."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if local_only:
                _check_host(request)
            if roles:
                _check_role(request)
            return await handler(request)
        except CiliateError as error:
            return _failure(error)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _problem(error.status, "not_found" if error.status == 404 else "invalid", error.reason)

    return guard


def _check_host(request: web.Request) -> None:
    try:
        host, _ = split_address(request.host, "Host") if _has_port(request.host) else (request.host.strip("[]"), 0)
    except Invalid as error:
        raise Denied(str(error)) from error
    if not is_loopback(host):
        raise Denied(f"Host: {request.host[:80]!r} is not this machine; use http://localhost with the same port")


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and not host.endswith("]") and host.count(":") != 0


def _check_role(request: web.Request) -> None:
    certificate = request.transport.get_extra_info("peercert") if request.transport else None
    names = [text for kind, text in (certificate or {}).get("subjectAltName", ()) if kind == "URI"]
    roles = {text.removeprefix("ciliate://").partition("/")[0] for text in names if text.startswith("ciliate://")}
    if not roles & READERS:
        raise Denied(
            f"the certificate's roles ({', '.join(sorted(roles)) or 'none'}) may not read flows; use role client"
        )


def _failure(error: CiliateError) -> web.Response:
    for kind, status, code in STATUS:
        if isinstance(error, kind):
            return _problem(status, code, str(error), error.field if isinstance(error, InvalidParameter) else "")
    return _problem(500, "internal", str(error))


def _problem(status: int, code: str, message: str, field: str = "") -> web.Response:
    body = {"code": code, "message": message} | ({"field": field} if field else {})
    return web.json_response({"error": body}, status=status, headers={"Cache-Control": "no-store"})


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _static_routes() -> list[web.RouteDef]:
    """One route per file: nothing else can be asked for."""
    found = []
    for path in sorted(STATIC.rglob("*")):
        if path.is_file():
            handler = _file(path)
            found.append(web.get(f"/{path.relative_to(STATIC).as_posix()}", handler))
            if path == STATIC / "index.html":
                found.append(web.get("/", handler))
    return found


def _file(path: Path) -> Handler:
    content = path.read_bytes()
    tag = hashlib.sha256(content).hexdigest()[:32]
    kind = {".js": "text/javascript", ".md": "text/plain", "": "text/plain"}.get(path.suffix)
    kind = kind or mimetypes.guess_type(path.name)[0] or "application/octet-stream"

    async def handler(request: web.Request) -> web.Response:
        headers = {"Cache-Control": "no-cache", "ETag": f'"{tag}"'}
        if request.headers.get("If-None-Match") == f'"{tag}"':
            return web.Response(status=304, headers=headers)
        charset = "utf-8" if kind.startswith(("text/", "image/svg")) else None
        response = web.Response(body=content, content_type=kind, charset=charset, headers=headers)
        response.enable_compression()
        return response

    return handler
