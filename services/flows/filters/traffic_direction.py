"""`traffic_direction`: equality; TRAFFIC_DIRECTION_UNKNOWN can be asked for."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.filters.base import Condition, is_one_of


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    return [is_one_of("direction", list(given.traffic_direction))] if given.traffic_direction else []
