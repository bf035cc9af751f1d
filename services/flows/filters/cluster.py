"""`source_cluster_name`, `destination_cluster_name`: equality, no wildcards."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.entries import Party
from services.flows.filters.base import Condition, FilterError, party


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    sides = (("source", given.source_cluster_name), ("destination", given.destination_cluster_name))
    return [_of(column, list(values)) for column, values in sides if values]


def _of(column: str, values: list[str]) -> Condition:
    if "" in values:
        raise FilterError(f"{column}_cluster_name: an empty cluster name")
    wanted = frozenset(values)

    def of_cluster(entry: Party) -> bool:
        return entry.cluster in wanted

    return party(column, of_cluster)
