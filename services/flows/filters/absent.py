"""Filters on what records never carry: `encrypted`, `interface`, `ip_trace_id`.

They match as Hubble's do on flows without the field.
"""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.filters.base import Condition, Rows


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    found: list[Condition] = []
    if given.interface:
        found.append(Rows.none)
    if given.encrypted and False not in given.encrypted:
        found.append(Rows.none)
    if given.ip_trace_id and 0 not in given.ip_trace_id:
        found.append(Rows.none)
    return found
