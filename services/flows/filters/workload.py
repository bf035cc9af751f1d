"""`source_workload`, `destination_workload`: name and kind; an empty one is a wildcard."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.entries import Party
from services.flows.filters.base import Condition, party


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    sides = (("source", given.source_workload), ("destination", given.destination_workload))
    return [_of(column, [(each.kind, each.name) for each in values]) for column, values in sides if values]


def _of(column: str, wanted: list[tuple[str, str]]) -> Condition:
    def is_one(entry: Party) -> bool:
        return bool(entry.workload) and any(
            (not kind or kind == entry.workload_kind) and (not name or name == entry.workload) for kind, name in wanted
        )

    return party(column, is_one)
