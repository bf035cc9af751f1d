"""What an API server looks at before it keeps what a client sends: names, namespaces, events, state.

Tests put objects into the store as they like; what comes by a request is held to this.
"""

from __future__ import annotations

import copy
import re

from tests.kube.store import SIGNING_REQUESTS, Document, Place, Refused, Store

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MAX_NAME = 253
_STATELESS = {"/api/v1/services", "/api/v1/pods", SIGNING_REQUESTS}
"""Built-in kinds whose state nobody sets who creates them."""
_ALWAYS_THERE = ("default", "kube-system")


def admitted(store: Store, at: Place, document: Document) -> Document:
    """What is kept of an object that is created; raises `Refused`."""
    document = copy.deepcopy(document)
    metadata = document.get("metadata") or {}
    name = metadata.get("name") or ""
    if name and (len(name) > _MAX_NAME or not _NAME.fullmatch(name)):
        raise Refused(
            422, f"metadata.name: Invalid value: {name!r}: a lowercase RFC 1123 subdomain must consist of ..."
        )
    if at.namespace:
        _check_namespace(store, at.namespace)
    if at.collection == "/api/v1/events":
        place = (document.get("involvedObject") or {}).get("namespace") or "default"
        if place != at.namespace:
            raise Refused(422, f"involvedObject.namespace: Invalid value: {place!r}: does not match event.namespace")
    if at.collection in store.schemas or at.collection in _STATELESS:
        document.pop("status", None)
    return document


def _check_namespace(store: Store, name: str) -> None:
    space = store.objects.get("/api/v1/namespaces", {}).get(("", name))
    if space is None and name not in _ALWAYS_THERE:
        raise Refused(404, f'namespaces "{name}" not found')
    if space and space["metadata"].get("deletionTimestamp"):
        raise Refused(403, f"unable to create new content in namespace {name} because it is being terminated")
