"""What is kept of objects: a cluster has many, and most of what is in them is nobody's business here. Pure."""

from __future__ import annotations

from typing import Any

from services.model.objects import POOL_ANNOTATION

Document = dict[str, Any]
_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")


def _metadata(document: Document, *more: str) -> Document:
    found = document.get("metadata") or {}
    return {name: found[name] for name in (*_METADATA, *more) if name in found}


def _part(document: Document, part: str, *names: str) -> Document:
    found = document.get(part)
    return {name: found[name] for name in names if name in found} if isinstance(found, dict) else {}


def pod(document: Document) -> Document:
    """Where it is, whether it has an address of ours and which, which pool it asks for."""
    metadata = _metadata(document)
    asked = ((document.get("metadata") or {}).get("annotations") or {}).get(POOL_ANNOTATION)
    if asked:
        metadata["annotations"] = {POOL_ANNOTATION: asked}
    return {
        "metadata": metadata,
        "spec": _part(document, "spec", "nodeName", "hostNetwork"),
        "status": _part(document, "status", "phase") | _addresses(document),
    }


def _addresses(document: Document) -> Document:
    """As one text: there are many pods."""
    found = (document.get("status") or {}).get("podIPs")
    texts = [str(each.get("ip") or "") for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return {"addresses": " ".join(texts)} if texts else {}


def agent(document: Document) -> Document:
    """Whether it is ready, and where."""
    return {
        "metadata": _metadata(document),
        "spec": _part(document, "spec", "nodeName"),
        "status": _part(document, "status", "conditions"),
    }


def namespace(document: Document) -> Document:
    """Annotations."""
    return {"metadata": _metadata(document, "annotations")}


def node(document: Document) -> Document:
    """Ranges, taints, conditions."""
    return {
        "metadata": _metadata(document),
        "spec": _part(document, "spec", "podCIDR", "podCIDRs", "taints"),
        "status": _part(document, "status", "conditions"),
    }


def whole(document: Document) -> Document:
    """Everything but the server's book-keeping."""
    return {**document, "metadata": _metadata(document, "labels", "annotations", "ownerReferences")}
