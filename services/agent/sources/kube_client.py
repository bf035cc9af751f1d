"""The part of kubernetes-asyncio that the agent needs: credentials and requests; answers stay plain JSON.

The package's `__init__` imports every API model, 47 MB resident, of which nothing is used here. So its two package
modules are registered empty (their submodules load as usual), and only configuration and transport are imported.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from services.common.errors import CiliateError, Conflict, Denied, Internal, Invalid, NotFound, Unavailable

LIST_TIMEOUT_SECONDS = 60.0
_READ_SLACK_SECONDS = 30.0


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
    """Reads and patches on one API server. `kubeconfig` is a path; empty = the pod's own service account."""

    def __init__(self, kubeconfig: str = "") -> None:
        self._kubeconfig = kubeconfig
        self._configuration: Any = None
        self._rest: Any = None

    async def __aenter__(self) -> Self:
        configuration, rest, config = _load_library()
        self._configuration = configuration()
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
        """One page of a list."""
        timeout = aiohttp.ClientTimeout(total=LIST_TIMEOUT_SECONDS)
        try:
            response = await self._request("GET", path, query, timeout)
            async with response:
                document: dict[str, Any] = await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise Unavailable(f"kubernetes: {path}: {_reason(error)}") from error
        return document

    async def patch(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Merge a document into an object; raises `Conflict` when it names a version that is not the newest."""
        timeout = aiohttp.ClientTimeout(total=LIST_TIMEOUT_SECONDS)
        try:
            response = await self._request("PATCH", path, {}, timeout, dict(document))
            async with response:
                answer: dict[str, Any] = await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise Unavailable(f"kubernetes: {path}: {_reason(error)}") from error
        return answer

    async def watch(self, path: str, query: Mapping[str, str], seconds: int) -> AsyncIterator[dict[str, Any]]:
        """Events of one watch request that the server ends after `seconds`; raises like `list`, and `Gone`."""
        asked = {**query, "watch": "true", "timeoutSeconds": str(seconds)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=seconds + _READ_SLACK_SECONDS)
        try:
            response = await self._request("GET", path, asked, timeout)
            async with response:
                async for line in response.content:
                    if line.strip():
                        yield json.loads(line)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise Unavailable(f"kubernetes: watching {path}: {_reason(error)}") from error

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        body: dict[str, Any] | None = None,
    ) -> Any:
        headers = {"Accept": "application/json", "User-Agent": "ciliate-agent"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        for setting in (await self._configuration.auth_settings()).values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
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


def error_of(status: int, message: str) -> CiliateError:
    """The error for an HTTP status; what may heal is `Unavailable`."""
    kinds: dict[int, type[CiliateError]] = {
        400: Invalid,
        401: Denied,
        403: Denied,
        404: NotFound,
        409: Conflict,
        410: Gone,
        422: Invalid,
    }
    kind = kinds.get(status, Unavailable if status in (408, 429) or status >= 500 else Internal)
    return kind(f"{message} (HTTP {status})")


async def _message(response: Any) -> str:
    text = (await response.read())[:4096].decode("utf-8", "replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200] or str(response.reason)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
