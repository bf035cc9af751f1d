"""Changes as messages of the watch stream. Pure: no stream, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from services.common.pb.identity.v1 import identity_pb2 as pb
from services.identity.keys import label_texts
from services.identity.state import Change, EndpointChange, IdentityChange
from services.model.identity import RESERVED_LABELS

MESSAGE_BYTES = 512 << 10
"""About how large a message becomes; gRPC clients refuse more than 4 MiB unless told otherwise."""


def reserved_identities() -> list[pb.Identity]:
    """The identities with fixed numbers, as every snapshot begins with them."""
    return [pb.Identity(id=number, labels=labels.texts()) for number, labels in RESERVED_LABELS.items()]


def identity_message(number: int, canonical: str) -> pb.Identity:
    """An identity as callers see it."""
    return pb.Identity(id=number, labels=label_texts(canonical))


def row_node(row: bytes) -> str:
    """Whose row this is."""
    return pb.Endpoint.FromString(row).node


def messages(changes: Iterable[Change], revision: int) -> Iterator[pb.WatchResponse]:
    """Pack changes, in their order, into messages of bounded size that all carry `revision`."""
    message, size = pb.WatchResponse(revision=revision), 0
    for change in changes:
        size += _add(message, change)
        if size >= MESSAGE_BYTES:
            yield message
            message, size = pb.WatchResponse(revision=revision), 0
    if size:
        yield message


def _add(message: pb.WatchResponse, change: Change) -> int:
    match change:
        case IdentityChange(number, None):
            message.deleted_identities.append(number)
        case IdentityChange(number, canonical):
            message.identities.append(identity_message(number, canonical or ""))
            return 16 + len(canonical or "")
        case EndpointChange(prefix, None):
            message.deleted_prefixes.append(prefix)
            return 2 + len(prefix)
        case EndpointChange(_, row):
            message.endpoints.append(pb.Endpoint.FromString(row or b""))
            return 4 + len(row or b"")
    return 8
