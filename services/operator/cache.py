"""Objects of one kind, kept up to date: what chores decide about. Only what they need of each is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from services.common.kube.reflector import Begun, Change, Client, Complete, Page, Reflector
from services.common.kube.resources import Resource
from services.common.retry import Backoff

Document = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name)"""


class Cache:
    """`trim` says what is kept of a document. `changed` is called after every change, `synced` is set by the first
    complete list."""

    def __init__(
        self,
        client: Client,
        resource: Resource,
        trim: Callable[[Document], Document] = lambda document: document,
        backoff: Backoff | None = None,
    ) -> None:
        self.resource, self._trim = resource, trim
        self._reflector = Reflector(client, resource, backoff)
        self._objects: dict[Key, Document] = {}
        self._fresh: dict[Key, Document] = {}
        self.synced = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None

    @property
    def problem(self) -> str:
        """Empty while the API server answers."""
        return self._reflector.problem

    def all(self) -> Iterable[Document]:
        """Every object."""
        return self._objects.values()

    def get(self, name: str, namespace: str = "") -> Document | None:
        """One object, if it is there."""
        return self._objects.get((namespace, name))

    def __len__(self) -> int:
        return len(self._objects)

    async def run(self) -> None:
        """Follow the API server for ever."""
        async for event in self._reflector.events():
            match event:
                case Begun():
                    self._fresh = {}
                case Page(items=items):
                    self._fresh |= {key: self._trim(item) for item in items if (key := key_of(item))}
                case Complete(version=version):
                    self._listed(version)
                case Change(type=kind, document=document):
                    self._one(kind, document)

    def learn(self, document: Document) -> None:
        """What a write of ours made of an object; an older version that the watch still tells does not undo it."""
        if key := key_of(document):
            self._put(key, self._trim(document))

    def _listed(self, version: str) -> None:
        fresh, self._fresh = self._fresh, {}
        for key, document in self._objects.items():
            # Learnt of after the list was made, if its version is newer.
            newer = _number(document) > (_number(fresh[key]) if key in fresh else _as_number(version))
            if newer:
                fresh[key] = document
        self._objects = fresh
        self.synced.set()
        self.changed()

    def _one(self, kind: str, document: Document) -> None:
        key = key_of(document)
        if key is None:
            return
        known = self._objects.get(key)
        if known is not None and _number(known) > _number(document):
            return
        if kind == "DELETED":
            self._objects.pop(key, None)
            self.changed()
        else:
            self._put(key, self._trim(document))

    def _put(self, key: Key, document: Document) -> None:
        self._objects[key] = document
        self.changed()


def key_of(document: Document) -> Key | None:
    """None for an object without a name, which is no object."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return None
    return str(metadata.get("namespace") or ""), metadata["name"]


def _number(document: Document) -> int:
    return _as_number(str(document["metadata"].get("resourceVersion") or ""))


def _as_number(version: str) -> int:
    """Versions of one kind grow; one that is no number is older than everything, so that the watch is believed."""
    return int(version) if version.isdecimal() else 0
