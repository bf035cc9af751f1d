"""`source_identity`, `destination_identity`: numeric equality."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.entries import Party
from services.flows.filters.base import Condition, party


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    sides = (("source", given.source_identity), ("destination", given.destination_identity))
    return [_of(column, frozenset(values)) for column, values in sides if values]


def _of(column: str, wanted: frozenset[int]) -> Condition:
    def has(entry: Party) -> bool:
        return entry.identity in wanted

    return party(column, has)
