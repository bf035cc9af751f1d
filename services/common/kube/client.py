"""The part of kubernetes-asyncio that we need: credentials and requests; answers stay plain JSON.

The package's `__init__` imports every API model, 47 MB resident, of which nothing is used here. So its two package
modules are registered empty (their submodules load as usual), and only configuration and transport are imported.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import types
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from services.common.errors import CiliateError, Conflict, Denied, Invalid, NotFound, Unavailable

REQUEST_TIMEOUT_SECONDS = 60.0
QUIET_SECONDS = 240.0
"""A watch that was silent for so long is asked for anew. That is nothing unusual: servers send bookmarks of kinds only
after something happened to one. But it might also hang behind a proxy that is still there."""
_PROBES = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""Seconds, and how many: the kernel asks a silent other end whether it is there, so a dead one is found in a minute."""
MAX_LINE = 16 << 20
"""Bytes of one event of a watch. etcd takes objects of 1.5 MB; whatever is longer is no event."""
OPENED = "OPENED"
MERGE, JSON = "application/merge-patch+json", "application/json"


class Gone(CiliateError):
    """HTTP 410: the resource version is too old to resume from; list again."""


def _light(name: str, folder: Path) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
    return module


def _load_library() -> tuple[Any, Any, Any]:
    """(Configuration, RESTClientObject, config package) without the models."""
    if "kubernetes_asyncio" not in sys.modules:
        spec = importlib.util.find_spec("kubernetes_asyncio")
        if spec is None or spec.origin is None:
            raise Invalid("source: kubernetes needs the package kubernetes-asyncio; install ciliate[agent]")
        root = Path(spec.origin).parent
        _light("kubernetes_asyncio", root)
        client = _light("kubernetes_asyncio.client", root / "client")
        _light("kubernetes_asyncio.client.models", root / "client" / "models")
        from kubernetes_asyncio.client.configuration import Configuration as Found

        client.Configuration = Found  # type: ignore[attr-defined]
        from kubernetes_asyncio.client.api_client import ApiClient

        client.ApiClient = ApiClient  # type: ignore[attr-defined]
    from kubernetes_asyncio import config
    from kubernetes_asyncio.client.configuration import Configuration
    from kubernetes_asyncio.client.rest import RESTClientObject

    return Configuration, RESTClientObject, config


class KubeClient:
    """Requests to one API server. `kubeconfig` is a path; empty = the pod's own service account.

    `timeout`: seconds after which a request has failed, watches apart.
    """

    def __init__(
        self, kubeconfig: str = "", user_agent: str = "ciliate-agent", timeout: float = REQUEST_TIMEOUT_SECONDS
    ) -> None:
        self._kubeconfig, self._user_agent, self._timeout = kubeconfig, user_agent, timeout
        self._configuration: Any = None
        self._rest: Any = None
        self._unusable: Any = Exception

    async def __aenter__(self) -> Self:
        configuration, rest, config = _load_library()
        self._configuration, self._unusable = configuration(), config.ConfigException
        try:
            if self._kubeconfig:
                await config.load_kube_config(
                    config_file=self._kubeconfig, client_configuration=self._configuration, persist_config=False
                )
            else:
                config.load_incluster_config(client_configuration=self._configuration)
        except (config.ConfigException, OSError, ValueError) as error:
            raise Invalid(f"kubeconfig: {self._kubeconfig or 'service account'}: {error}") from error
        self._rest = rest(self._configuration)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._rest.close()

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of a list, or one object."""
        return await self._answer("GET", path, query)

    async def create(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Add an object to a collection; raises `Conflict` when there is one of its name."""
        return await self._answer("POST", path, {}, document, JSON)

    async def replace(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Write a whole object; raises `Conflict` when it names a version that is not the newest."""
        return await self._answer("PUT", path, {}, document, JSON)

    async def patch(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Merge a document into an object; raises `Conflict` when it names a version that is not the newest."""
        return await self._answer("PATCH", path, {}, document, MERGE)

    async def delete(self, path: str) -> None:
        """Delete an object; raises `NotFound`."""
        await self._answer("DELETE", path, {})

    async def _answer(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None = None, kind: str = ""
    ) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        try:
            response = await self._request(method, path, query, timeout, None if body is None else dict(body), kind)
            async with response:
                document = await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise Unavailable(f"kubernetes: {path}: {_reason(error)}") from error
        if not isinstance(document, dict):
            raise Unavailable(f"kubernetes: {path}: the answer is no object; is this an API server?")
        return document

    async def watch(self, path: str, query: Mapping[str, str], seconds: int) -> AsyncIterator[dict[str, Any]]:
        """Events of one watch request that the server ends after `seconds`; raises like `list`, and `Gone`.

        It also ends when nothing was heard for `QUIET_SECONDS`.
        The first one, {"type": "OPENED"}, is not the server's: it says that the request was accepted.
        """
        asked = {**query, "watch": "true", "timeoutSeconds": str(seconds)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=QUIET_SECONDS)
        try:
            response = await self._request("GET", path, asked, timeout)
            async with response:
                _probe(response)
                yield {"type": OPENED}
                async for line in _until_quiet(_lines(response.content)):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        yield event
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise Unavailable(f"kubernetes: watching {path}: {_reason(error)}") from error

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        body: dict[str, Any] | None = None,
        kind: str = "",
    ) -> Any:
        headers = {"Accept": JSON, "User-Agent": self._user_agent}
        if body is not None:
            headers["Content-Type"] = kind
        headers |= await self._credentials()
        response = await self._rest.request(
            method,
            self._configuration.host + path,
            query_params=list(query.items()),
            headers=headers,
            body=body,
            _preload_content=False,
            _request_timeout=timeout,
        )
        if response.status >= 300:
            async with response:
                raise error_of(response.status, f"kubernetes: {path}: {await _message(response)}")
        return response

    async def _credentials(self) -> dict[str, str]:
        """Headers; the service account's token is read anew every minute, as it is replaced every hour."""
        try:
            settings = (await self._configuration.auth_settings()).values()
        except (OSError, self._unusable) as error:
            raise Unavailable(f"kubernetes: credentials: {error}") from error
        return {each["key"]: each["value"] for each in settings if each["in"] == "header" and each["value"]}


def error_of(status: int, message: str) -> CiliateError:
    """The error for an HTTP status. Whatever else it is (a redirect, a proxy's page) may heal: `Unavailable`."""
    kinds: dict[int, type[CiliateError]] = {
        400: Invalid,
        401: Denied,
        403: Denied,
        404: NotFound,
        409: Conflict,
        410: Gone,
        422: Invalid,
    }
    hint = "; does its role (RBAC) allow this?" if status == HTTPStatus.FORBIDDEN else ""
    return kinds.get(status, Unavailable)(f"{message} (HTTP {status}{hint})")


def _probe(response: Any) -> None:
    """Have the kernel look after the connection."""
    transport = response.connection and response.connection.transport
    there = transport and transport.get_extra_info("socket")
    if there is not None:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES:
            there.setsockopt(socket.IPPROTO_TCP, option, value)


async def _until_quiet(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for line in lines:
            yield line
    except aiohttp.SocketTimeoutError:
        return


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines. The reader's own are bounded at 128 KiB, and an object can be larger; half a line at the end of a
    connection that broke is no line."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > MAX_LINE:
            raise ValueError(f"an event of more than {MAX_LINE} bytes")


async def _message(response: Any) -> str:
    text = (await response.read())[:4096].decode("utf-8", "replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200] or str(response.reason)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
