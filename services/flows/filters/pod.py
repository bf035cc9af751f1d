"""`source_pod`, `destination_pod`: `namespace/prefix`; a namespace alone is `namespace/`."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.entries import Party
from services.flows.filters.base import Condition, party
from services.flows.filters.names import namespaced


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    sides = (("source", given.source_pod), ("destination", given.destination_pod))
    return [_of(column, list(values)) for column, values in sides if values]


def _of(column: str, values: list[str]) -> Condition:
    matches = namespaced(values, f"{column}_pod")

    def is_one(entry: Party) -> bool:
        return matches(entry.namespace, entry.pod)

    return party(column, is_one)
