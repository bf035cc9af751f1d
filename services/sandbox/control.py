"""The supervisor's control socket: one JSON line in, one JSON line out. Root only (the folder is 0700).

Requests: {"op": "apply" | "delete" | "get" | "wait" | "status" | "down", ...}. Answers: {"ok": {...}} or
{"error": {"kind": "Invalid", "message": "..."}}; kinds are the names of the error tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from services.common.errors import CiliateError, Invalid
from services.model.objects import ObjectKey
from services.sandbox.manifests import CLUSTER_SCOPED, Document, Manifest, parse
from services.sandbox.supervisor import Sandbox

_LIMIT = 16 << 20
Answer = dict[str, Any]


class ControlServer:
    """Serves `sandbox` on its control socket while the context is open; `ended` is set by the request to go down."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._server: asyncio.Server | None = None
        self.ended = asyncio.Event()
        self._operations: Mapping[str, Callable[[Answer], Awaitable[Answer]]] = {
            "apply": self._apply,
            "delete": self._delete,
            "get": self._get,
            "wait": self._wait,
            "status": self._status,
            "down": self._down,
        }

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self._sandbox.paths.control), limit=_LIMIT)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while line := await _read_line(reader):
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()

    async def _answer(self, line: bytes) -> Answer:
        try:
            try:
                request = json.loads(line)
            except json.JSONDecodeError as error:
                raise Invalid(f"request: not JSON: {error}") from error
            operation = self._operations.get(str(request.get("op"))) if isinstance(request, dict) else None
            if operation is None:
                raise Invalid(f"request: op must be one of {', '.join(self._operations)}")
            return {"ok": await operation(request)}
        except CiliateError as error:
            return {"error": {"kind": type(error).__name__, "message": str(error)}}

    async def _apply(self, request: Answer) -> Answer:
        # Everything is read before anything is applied: a mistake in the last file leaves nothing half done.
        return {"messages": self._sandbox.apply(_manifests(request))}

    async def _delete(self, request: Answer) -> Answer:
        keys = [manifest.key for manifest in _manifests(request)]
        keys += [self._find(*key) for key in request.get("keys", ())]
        return {"messages": self._sandbox.delete(keys)}

    async def _get(self, request: Answer) -> Answer:
        """Documents as they stand, Pods with their status: all of a kind, in a namespace where one is named."""
        pods = [pod.document for pod in self._sandbox.kubelet.pods.values()]
        known = self._sandbox.store.for_agents(pods)
        kind, namespace = str(request.get("kind")), request.get("namespace")
        return {
            "items": [
                document
                for key, document in sorted(known.items())
                if key.kind == kind and namespace in (None, "", key.namespace)
            ]
        }

    def _find(self, kind: str, namespace: str, name: str) -> ObjectKey:
        """The key that people mean by "cnp" or "deployment": kinds in any case, and the usual short names."""
        known = {key.kind.lower(): key.kind for key in self._sandbox.store.objects} | _SHORT_NAMES
        full = known.get(kind.lower().removesuffix("s"), known.get(kind.lower(), kind))
        cluster_scoped = full in CLUSTER_SCOPED
        return ObjectKey(full, "" if cluster_scoped else namespace, name)

    async def _wait(self, request: Answer) -> Answer:
        await self._sandbox.wait_ready(float(request.get("seconds", 60.0)))
        return {}

    async def _status(self, _request: Answer) -> Answer:
        return status(self._sandbox)

    async def _down(self, _request: Answer) -> Answer:
        self.ended.set()
        return {}


def _manifests(request: Answer) -> list[Manifest]:
    """The objects of all texts in a request; raises `Invalid` with every mistake in every one."""
    found: list[Manifest] = []
    problems: list[str] = []
    for source in request.get("sources", ()):
        try:
            found += parse(str(source["text"]), str(source["origin"]), str(request.get("namespace") or "default"))
        except Invalid as error:
            problems.append(str(error))
    if problems:
        raise Invalid("\n".join(problems))
    return found


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError as error:  # longer than the limit
        raise ConnectionError(f"request: {error}") from error


_SHORT_NAMES = {
    "cnp": "CiliumNetworkPolicy",
    "ccnp": "CiliumClusterwideNetworkPolicy",
    "cegp": "CiliumEgressGatewayPolicy",
    "ccg": "CiliumCIDRGroup",
    "ciliumcidrgroup": "CiliumCIDRGroup",
    "netpol": "NetworkPolicy",
    "svc": "Service",
    "deploy": "Deployment",
    "po": "Pod",
    "ns": "Namespace",
    "networkpolicie": "NetworkPolicy",
    "ciliumnetworkpolicie": "CiliumNetworkPolicy",
    "ciliumegressgatewaypolicie": "CiliumEgressGatewayPolicy",
    "ciliumclusterwidenetworkpolicie": "CiliumClusterwideNetworkPolicy",
}


def status(sandbox: Sandbox) -> Answer:
    """How the sandbox stands: nodes, pods, objects."""
    return {
        "name": sandbox.name,
        "nodes": sandbox.cluster.describe(),
        "pods": [
            {
                "namespace": pod.key.namespace,
                "name": pod.key.name,
                "node": pod.document["spec"]["nodeName"],
                "addresses": list(pod.addresses),
                "ready": pod.ready,
                "message": pod.message,
                "restarts": pod.restarts,
                "pid": pod.pid,
                "labels": _labels(pod.document),
                "owner": _owner(pod.document),
            }
            for pod in sorted(sandbox.kubelet.pods.values(), key=lambda pod: pod.key)
        ],
        "objects": [
            {"kind": key.kind, "namespace": key.namespace, "name": key.name, "detail": _detail(document)}
            for key, document in sorted(sandbox.store.objects.items())
        ],
    }


def _labels(document: Document) -> dict[str, str]:
    return dict(document["metadata"].get("labels") or {})


def _owner(document: Document) -> str:
    owners = document["metadata"].get("ownerReferences") or [{"name": ""}]
    return str(owners[0]["name"]).rpartition("-")[0]


def _detail(document: Document) -> str:
    if document["kind"] == "Service":
        ports = ",".join(
            f"{port['port']}/{port.get('protocol', 'TCP')}" for port in document["spec"].get("ports") or ()
        )
        return f"{','.join(document['spec'].get('clusterIPs') or ())} {ports}".strip()
    if document["kind"] == "Deployment":
        return f"{document['spec'].get('replicas', 1)} replicas"
    return ""
