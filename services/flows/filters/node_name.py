"""`node_name`: `[cluster/]node` with `*`."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.entries import NodeRef
from services.flows.filters.base import Condition, where_entry
from services.flows.filters.names import node_matcher


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    if not given.node_name:
        return []
    matches = node_matcher(list(given.node_name), "node_name")

    def is_one(entry: NodeRef) -> bool:
        return matches(entry.absolute)

    return [where_entry("node", is_one)]
