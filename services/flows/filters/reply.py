"""`reply`: three-valued; a flow of which it is not known matches nothing, except that a drop counts as no reply."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array
from services.flows.facets import DROPPED, replies
from services.flows.filters.base import Condition, Rows


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    if not given.reply:
        return []
    want_reply, want_request = True in given.reply, False in given.reply

    def condition(rows: Rows) -> Array:
        reply, known = replies(rows.columns)
        request = (known & ~reply) | (~known & (rows["verdict"] == DROPPED))
        mask: Array = (reply & want_reply) | (request & want_request)
        return mask

    return [condition]
