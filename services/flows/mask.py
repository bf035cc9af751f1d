"""Field masks on flows: paths relative to `flow.Flow`, with the proto's own field names (`IP`, `l4.TCP`)."""

from __future__ import annotations

from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from services.common.pb.flow import flow_pb2

Tree = dict[str, "Tree"]


class MaskError(ValueError):
    """A path that `flow.Flow` does not have."""


def parse(mask: FieldMask) -> Tree | None:
    """The fields to keep; None = all. A path covers everything below it. Raises `MaskError`."""
    if not mask.paths:
        return None
    if not mask.IsValidForDescriptor(flow_pb2.Flow.DESCRIPTOR):
        raise MaskError("invalid fieldmask")
    tree: Tree = {}
    # Short paths first: `source` makes `source.identity` superfluous, whatever the order they came in.
    for path in sorted(mask.paths, key=lambda path: path.count(".")):
        place, names = tree, path.split(".")
        for name in names[:-1]:
            if name in place and not place[name]:
                break
            place = place.setdefault(name, {})
        else:
            place[names[-1]] = {}
    return tree


def apply(tree: Tree, message: Message) -> None:
    """Clear every field that the mask does not name."""
    for field, value in message.ListFields():
        kept: Any = tree.get(field.name)
        if kept is None:
            message.ClearField(field.name)
        elif kept:
            apply(kept, value)
