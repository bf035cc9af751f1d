"""A Kubernetes API server for commands: documents in, documents out, and commands in pods. By kubernetes-asyncio.

Addresses and credentials come from a kubeconfig (`--kubeconfig`, $KUBECONFIG, ~/.kube/config), as kubectl finds them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

from services.common.errors import CiliateError, Conflict, Denied, Invalid, NotFound, Unavailable

Document = Mapping[str, Any]
FIELD_MANAGER = "ciliate"
_PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "CiliumNetworkPolicy": "ciliumnetworkpolicies",
    "CiliumClusterwideNetworkPolicy": "ciliumclusterwidenetworkpolicies",
    "CiliumEgressGatewayPolicy": "ciliumegressgatewaypolicies",
}
VERSIONS = {
    "Namespace": "v1",
    "Node": "v1",
    "Pod": "v1",
    "Service": "v1",
    "ConfigMap": "v1",
    "Event": "v1",
    "DaemonSet": "apps/v1",
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "CiliumNetworkPolicy": "cilium.io/v2",
    "CiliumClusterwideNetworkPolicy": "cilium.io/v2",
    "CiliumCIDRGroup": "cilium.io/v2",
    "CiliumEgressGatewayPolicy": "cilium.io/v2",
    "CiliumLoadBalancerIPPool": "cilium.io/v2",
    "CiliateNode": "ciliate.io/v1",
    "CiliatePodIPPool": "ciliate.io/v1",
}
"""The kinds that commands use."""
_ERRORS: dict[int, type[CiliateError]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    400: Invalid,
    422: Invalid,
}


def path_of(kind: str, namespace: str = "", name: str = "") -> str:
    """The URL path of an object, or of all of a kind."""
    version = VERSIONS[kind]
    base = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    parts = [base, *(["namespaces", namespace] if namespace else []), _PLURALS.get(kind, f"{kind.lower()}s")]
    return "/".join([*parts, *([name] if name else [])])


class Kubernetes:
    """One API server. Every call raises an error of the common tree that says what was asked."""

    def __init__(self, kubeconfig: str = "", context: str = "") -> None:
        self._kubeconfig, self._context = kubeconfig, context
        self._client: Any = None

    async def __aenter__(self) -> Self:
        # Submodules: the packages themselves may have been registered without their models (services/common/kube).
        from kubernetes_asyncio import config
        from kubernetes_asyncio.client.api_client import ApiClient
        from kubernetes_asyncio.client.configuration import Configuration

        configuration = Configuration()
        try:
            await config.load_kube_config(
                config_file=self._kubeconfig or None,
                context=self._context or None,
                client_configuration=configuration,
                persist_config=False,
            )
        except (config.ConfigException, OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
            raise Invalid(f"--kubeconfig: {self._kubeconfig or '~/.kube/config'}: {error}") from error
        self._client = ApiClient(configuration)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def list(self, kind: str, namespace: str = "", selector: str = "") -> list[dict[str, Any]]:
        """Objects of a kind; none where the server does not know the kind."""
        query = [("labelSelector", selector)] if selector else []
        try:
            found = await self._call("GET", path_of(kind, namespace), query=query)
        except NotFound:
            return []
        return [{"apiVersion": VERSIONS[kind], "kind": kind, **item} for item in found.get("items") or ()]

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        """One object; `NotFound` where it is not there."""
        return await self._call("GET", path_of(kind, namespace, name))

    async def apply(self, document: Document, *, dry_run: bool = False) -> dict[str, Any]:
        """Create or change by server-side apply; fields that others own are taken over."""
        metadata = document["metadata"]
        path = path_of(document["kind"], metadata.get("namespace", ""), metadata["name"])
        query = [("fieldManager", FIELD_MANAGER), ("force", "true"), *([("dryRun", "All")] if dry_run else [])]
        return await self._call("PATCH", path, document, query, "application/apply-patch+yaml")

    async def replace(self, document: Document, *, dry_run: bool = False) -> dict[str, Any]:
        """Put an object in place of the version that it was read as; `Conflict` where there is a newer one."""
        metadata = document["metadata"]
        path = path_of(document["kind"], metadata.get("namespace", ""), metadata["name"])
        return await self._call("PUT", path, document, [("dryRun", "All")] if dry_run else [])

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """Remove an object at once; one that is not there is a success."""
        query = [("gracePeriodSeconds", "0"), ("propagationPolicy", "Background")]
        try:
            await self._call("DELETE", path_of(kind, namespace, name), query=query)
        except NotFound:
            return

    async def text(self, path: str, query: Sequence[tuple[str, str]] = ()) -> str:
        """What the server answers as it is: logs."""
        return await self._raw("GET", path, None, query, "application/json")

    async def _call(
        self,
        method: str,
        path: str,
        body: Document | None = None,
        query: Sequence[tuple[str, str]] = (),
        content: str = "application/json",
    ) -> dict[str, Any]:
        text = await self._raw(method, path, body, query, content)
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    async def _raw(
        self, method: str, path: str, body: Document | None, query: Sequence[tuple[str, str]], content: str
    ) -> str:
        configuration, rest = self._client.configuration, self._client.rest_client
        headers = {"Accept": "application/json", "Content-Type": content}
        if token := await configuration.get_api_key_with_prefix("BearerToken"):
            headers["authorization"] = token
        url = f"{configuration.host}{path}"
        data = None if body is None else json.dumps(body)
        timeout = aiohttp.ClientTimeout(total=60)
        try:
            options = {"headers": headers, "params": list(query), "data": data, "timeout": timeout}
            async with rest.pool_manager.request(method, url, **options) as answer:
                text = str(await answer.text())
                if answer.status >= 400:
                    raise _ERRORS.get(answer.status, Unavailable)(f"{method} {path}: {_message(text, answer.status)}")
                return text
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"the API server at {configuration.host} does not answer: {error}") from error

    async def exec(self, namespace: str, pod: str, command: Sequence[str], seconds: float) -> tuple[int, str, str]:
        """Run a command in a pod's first container; returns (exit status, output, errors)."""
        from kubernetes_asyncio.client.api.core_v1_api import CoreV1Api
        from kubernetes_asyncio.stream import WsApiClient
        from kubernetes_asyncio.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDOUT_CHANNEL

        said: dict[int, bytes] = {}
        try:
            async with WsApiClient(self._client.configuration) as client:
                api: Any = CoreV1Api(client)
                call = api.connect_get_namespaced_pod_exec(
                    *(pod, namespace), command=list(command), stdout=True, stderr=True, _preload_content=False
                )
                async with await call as socket:
                    async for message in _within(socket, seconds):
                        said[message[0]] = said.get(message[0], b"") + message[1:]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{' '.join(command)[:80]} in pod {namespace}/{pod}: {error or 'no answer'}") from error
        texts = [said.get(channel, b"").decode(errors="replace") for channel in (STDOUT_CHANNEL, STDERR_CHANNEL)]
        return exit_status(said.get(ERROR_CHANNEL, b"")), texts[0], texts[1]


async def _within(socket: Any, seconds: float) -> Any:
    """Messages of a websocket until it closes, as bytes; `TimeoutError` where that takes too long."""
    async with asyncio.timeout(seconds):
        async for message in socket:
            data = message.data
            if isinstance(data, bytes | str) and data:
                yield data if isinstance(data, bytes) else data.encode()


def exit_status(status: bytes) -> int:
    """The command's exit status, from the status object that ends a session (v4.channel.k8s.io)."""
    try:
        found = json.loads(status or b"{}")
    except json.JSONDecodeError:
        return 126
    if found.get("status") == "Success":
        return 0
    causes = (found.get("details") or {}).get("causes") or ()
    codes = [cause["message"] for cause in causes if cause.get("reason") == "ExitCode"]
    return int(codes[0]) if codes and str(codes[0]).isdigit() else 126


def _message(text: str, status: int) -> str:
    try:
        return str(json.loads(text)["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"HTTP {status}"
