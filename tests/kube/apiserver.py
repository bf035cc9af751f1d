"""An API server on loopback that can be made to fail: in front of a store in memory, or of a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from aiohttp import web

from services.common.errors import CiliateError, Conflict, Denied, Invalid, NotFound
from services.common.kube.client import OPENED, Gone, KubeClient
from tests.kube import schema
from tests.kube.admission import admitted
from tests.kube.store import Document, Place, Refused, Store, place

Asked = tuple[str, str, str]
"""(verb, group, resource or resource/subresource), as rules of access name them."""
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Backend(Protocol):
    """What answers once nothing was made to fail."""

    async def answer(self, method: str, path: str, query: dict[str, str], body: Document) -> Document: ...

    def watch(self, path: str, query: dict[str, str]) -> AsyncIterator[Document]: ...


class Memory:
    """Answers out of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def answer(self, method: str, path: str, query: dict[str, str], body: Document) -> Document:
        at = place(path)
        if method == "GET":
            return self.store.get(at) if at.name else self.store.page(at, query)
        if method == "POST":
            return self.store.create(at, admitted(self.store, at, body))
        if method == "DELETE":
            return self.store.delete(at)
        return self.store.write(at, body, merge=method == "PATCH")

    def watch(self, path: str, query: dict[str, str]) -> AsyncIterator[Document]:
        return self.store.watch(place(path), query)


class Forward:
    """Asks a real API server."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def answer(self, method: str, path: str, query: dict[str, str], body: Document) -> Document:
        client = self._client
        try:
            match method:
                case "GET":
                    return await client.list(path, query)
                case "POST":
                    return await client.create(path, body)
                case "PUT":
                    return await client.replace(path, body)
                case "PATCH":
                    return await client.patch(path, body)
            await client.delete(path)
            return {"kind": "Status", "status": "Success"}
        except CiliateError as error:
            codes = {NotFound: 404, Conflict: 409, Denied: 403, Invalid: 422, Gone: 410}
            raise Refused(codes.get(type(error), 503), str(error)) from error

    async def watch(self, path: str, query: dict[str, str]) -> AsyncIterator[Document]:
        async for event in self._client.watch(path, query, int(query.get("timeoutSeconds") or 60)):
            if event["type"] != OPENED:
                yield event


class Faults:
    """What goes wrong now. `allowed` says which requests the role of the caller permits."""

    def __init__(self) -> None:
        self.allowed: Callable[[Asked], bool] = lambda asked: True
        self.cut_watch_after: int | None = None
        self.repeat_events = 1
        self.event_delay = 0.0
        self.expire_watches = 0
        """So many watches are told that their version is too old."""
        self.refuse: list[int] = []
        """Statuses that the next requests get instead of an answer."""
        self.missing: set[str] = set()
        """Plural names that the server does not know for now, as while it starts."""


class ApiServer:
    """Serves `backend`. `asked` is every request that was let through, as rules of access would name it."""

    def __init__(self, backend: Backend, directory: Path) -> None:
        self.backend, self.faults, self.asked = backend, Faults(), list[Asked]()
        self.watches: list[dict[str, str]] = []
        self.agents: set[str] = set()
        self._directory, self._port = directory, 0
        self._runner: web.AppRunner | None = None
        self._streams: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; on the same port as before, if it was stopped."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Gone: connections are cut, new ones are refused."""
        for stream in list(self._streams):
            stream.cancel()
        if self._runner:
            await self._runner.cleanup()
        self._runner = None

    @property
    def kubeconfig(self) -> str:
        """A file that leads here."""
        path = self._directory / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
        }
        path.write_text(json.dumps(config))
        return str(path)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path, query = "/" + request.match_info["path"], dict(request.query)
        try:
            at = place(path)
            verb = _VERBS.get(request.method) or ("watch" if "watch" in query else "get" if at.name else "list")
            self._admit((verb, at.group, at.resource), at)
            if verb == "watch":
                return await self._watch(request, path, query)
            body = await request.json() if request.can_read_body else {}
            answer = await self.backend.answer(request.method, path, query, body)
            return web.json_response(answer)
        except Refused as refused:
            return _status(refused.status, refused.message)
        except schema.Invalid as problem:
            return _status(422, str(problem))

    def _admit(self, asked: Asked, at: Place) -> None:
        if self.faults.refuse:
            raise Refused(self.faults.refuse.pop(0), "made to fail")
        if not self.faults.allowed(asked):
            raise Refused(403, f'cannot {asked[0]} resource "{asked[2]}" in API group "{asked[1]}"')
        if at.collection.rpartition("/")[2] in self.faults.missing:
            raise Refused(404, "the server could not find the requested resource")
        self.asked.append(asked)

    async def _watch(self, request: web.Request, path: str, query: dict[str, str]) -> web.StreamResponse:
        self.watches.append(query)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        task = asyncio.current_task()
        assert task
        self._streams.add(task)
        try:
            with contextlib.suppress(ConnectionError):
                await self._stream(request, response, path, query)
        finally:
            self._streams.discard(task)
        return response

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, path: str, query: dict[str, str]
    ) -> None:
        faults, count = self.faults, 0
        if faults.expire_watches:
            faults.expire_watches -= 1
            await response.write(_line({"type": "ERROR", "object": {"code": 410, "message": "too old"}}))
            return
        async for event in self.backend.watch(path, query):
            if faults.event_delay:
                await asyncio.sleep(faults.event_delay)
            for _ in range(faults.repeat_events if event["type"] != "ERROR" else 1):
                await response.write(_line(event))
            count += event["type"] != "BOOKMARK"
            if faults.cut_watch_after is not None and count > faults.cut_watch_after:
                await response.write(_line(event)[:20])  # half an event
                if request.transport:
                    request.transport.abort()
                return


def _line(event: Document) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.json_response(body, status=code)
