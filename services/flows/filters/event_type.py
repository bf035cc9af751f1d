"""`event_type`: type and, on demand, sub type of the facet that is looked at."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array
from services.flows.facets import NO_FACET, event_types
from services.flows.filters.base import Condition, Rows


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    if not given.event_type:
        return []
    elements = [(each.type, each.sub_type if each.match_sub_type else None) for each in given.event_type]

    def condition(rows: Rows) -> Array:
        types, subs = event_types(rows.columns, rows.facet)
        mask = rows.none()
        for kind, sub in elements:
            found = rows.all() if kind == 0 else types == kind
            mask |= found if sub is None else found & (subs == sub)
        mask &= types != NO_FACET
        return mask

    return [condition]
