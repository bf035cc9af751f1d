"""List and watch of one kind, for ever: three nested generators, each of them trivial.

`_once` (one watch request) is inside `_resuming` (list, then watch after watch from where the last one ended) is
inside `events` (whatever fails is tried again, later and later). What a reader gets: a list, page by page, between
`Begun` and `Complete`; then changes. A list that breaks off is void; the next one begins with `Begun` again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.errors import CiliateError, NotFound
from services.common.kube.client import OPENED, Gone, error_of
from services.common.kube.resources import Resource
from services.common.log import get_logger
from services.common.retry import Backoff

PAGE = 500
WATCH_SECONDS = (300, 600)
"""A watch ends after a random while between these: a thousand agents do not ask anew in step."""
SHORT_WATCH_SECONDS = 1.0
"""A watch that ends sooner than this did not serve us: the next one waits, so that a sick server is not hammered."""
FRUITLESS_WATCHES = 5
"""Watches in a row that fail without a word: the version may mean nothing to this server; list again."""
GONE_SECONDS = 60.0
"""A kind that had objects is believed to be uninstalled after this long: servers that start answer 404, too, and
policies must not fall for that."""

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Begun:
    """A list begins; pages before it that were not completed are void."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    items: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Complete:
    """The list is complete: what no page since `Begun` has was gone at `version` ('' where there is no such kind)."""

    version: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """`type` is ADDED, MODIFIED or DELETED; the same thing may be told more than once."""

    type: str
    document: Document


Event = Begun | Page | Complete | Change


class Client(Protocol):
    """The API server, as far as it is needed here."""

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]: ...

    def watch(self, path: str, query: Mapping[str, str], seconds: int) -> AsyncIterator[dict[str, Any]]: ...


class Reflector:
    """Follows one resource. `problem` is empty while that works."""

    def __init__(self, client: Client, resource: Resource, backoff: Backoff | None = None) -> None:
        self._client, self.resource = client, resource
        self._backoff = backoff or Backoff(initial=0.2, maximum=30.0)
        self._log = get_logger(f"kubernetes.{resource.kind}")
        self._had_objects = False
        self._missing_since: float | None = None
        self.problem = ""
        self.relists = 0
        """Lists after the first one."""

    async def events(self) -> AsyncIterator[Event]:
        """Never ends and never raises what the server can cause."""
        while True:
            try:
                async for event in self._resuming():
                    yield event
            except CiliateError as error:
                self._unhealthy(error)
            await self._backoff.wait()
            self.relists += 1

    async def _resuming(self) -> AsyncIterator[Event]:
        """List, then watch until the server forgot where we were (410) or nothing comes of it."""
        version, fruitless = "", 0
        async for event, at in self._listing():
            version = at
            yield event
        if not version:
            self._healthy()  # nothing to watch; else it is well once a watch stands
        while version and fruitless < FRUITLESS_WATCHES:
            began, told, failed = self._now(), False, False
            try:
                async for kind, document in self._once(version):
                    self._healthy()
                    if kind == OPENED:
                        continue
                    told = True
                    version = _version(document) or version
                    if kind != "BOOKMARK":
                        self._had_objects = True
                        yield Change(kind, document)
            except (Gone, NotFound):
                self._log.info("watch expired, listing again", version=version)
                return
            except CiliateError as error:
                self._unhealthy(error)
                failed = True
            if told or self._now() - began >= SHORT_WATCH_SECONDS:
                self._backoff.reset()
            fruitless = fruitless + 1 if failed and not told else 0
            if failed or self._now() - began < SHORT_WATCH_SECONDS:
                await self._backoff.wait()

    async def _once(self, version: str) -> AsyncIterator[tuple[str, Document]]:
        """(type, object) of one watch request from `version` on."""
        query = self.resource.query | {"resourceVersion": version, "allowWatchBookmarks": "true"}
        async for event in self._client.watch(self.resource.path, query, random.randint(*WATCH_SECONDS)):
            kind, document = event.get("type"), event.get("object")
            if kind == OPENED:
                yield OPENED, {}
            if not isinstance(document, dict):
                continue
            if kind == "ERROR":
                raise error_of(document.get("code") or 500, f"kubernetes: watch: {document.get('message', 'error')}")
            if kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
                yield kind, self._complete(document)

    async def _listing(self) -> AsyncIterator[tuple[Event, str]]:
        """The list, page by page; with `Complete` comes the version that a watch goes on from."""
        yield Begun(), ""
        token, found = "", False
        while True:
            query = self.resource.query | {"limit": str(PAGE)} | ({"continue": token} if token else {})
            try:
                page = await self._client.list(self.resource.path, query)
            except NotFound:
                self._check_missing()
                page = {}
            else:
                self._missing_since = None
                page.setdefault("metadata", {})
            items = page.get("items")
            documents = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
            found = found or bool(documents)
            yield Page(tuple(self._complete(item) for item in documents)), ""
            metadata = page.get("metadata")
            token = str((metadata or {}).get("continue") or "")
            if not token:
                self._had_objects = found
                # Servers that keep no versions answer with none; "0" asks for whatever is there.
                version = "" if metadata is None else _version(page) or "0"
                yield Complete(version), version
                return

    def _check_missing(self) -> None:
        """A kind that is not there: raises `NotFound` unless that may be so."""
        path = self.resource.path
        if not self.resource.optional:
            raise NotFound(f"kubernetes: {path}: the server does not know this kind")
        now = self._now()
        self._missing_since = self._missing_since if self._missing_since is not None else now
        if self._had_objects and now - self._missing_since < GONE_SECONDS:
            raise NotFound(f"kubernetes: {path}: the kind is gone; what was known of it stays in force for now")

    def _complete(self, item: Document) -> Document:
        """Lists leave kind and version out of their items."""
        return {"apiVersion": self.resource.api_version, "kind": self.resource.kind, **item}

    def _unhealthy(self, error: CiliateError) -> None:
        if self.problem != str(error):
            self._log.warning("kubernetes unavailable", problem=str(error))
        self.problem = str(error)

    def _healthy(self) -> None:
        if self.problem:
            self._log.info("kubernetes available")
        self.problem = ""

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _version(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("resourceVersion") or "") if isinstance(metadata, Mapping) else ""
