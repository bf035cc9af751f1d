"""`trace_id`: the W3C trace that a request belongs to, as text; an empty one selects flows that belong to none."""

from __future__ import annotations

import re

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array
from services.flows.filters.base import Condition, Rows

_ID = re.compile("[0-9a-f]{32}")


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    if not given.trace_id:
        return []
    wanted = {(int(text[:16], 16), int(text[16:], 16)) for text in given.trace_id if _ID.fullmatch(text)} - {(0, 0)}
    if "" in given.trace_id:
        wanted.add((0, 0))

    def condition(rows: Rows) -> Array:
        mask = rows.none()
        for high, low in wanted:
            mask |= (rows["trace_high"] == high) & (rows["trace_low"] == low)
        return mask

    return [condition]
