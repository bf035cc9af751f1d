"""`verdict`: equality."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.filters.base import Condition, is_one_of


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    return [is_one_of("verdict", list(given.verdict))] if given.verdict else []
