"""`ip_version`: every row has an address, so IP_NOT_USED matches nothing."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.entries import Party
from services.flows.filters.base import Condition, party
from services.model.addresses import V4_MAPPED_PREFIX


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    if not given.ip_version:
        return []
    wanted = frozenset(given.ip_version)

    def is_one(entry: Party) -> bool:
        version = flow_pb2.IPv4 if entry.address.startswith(V4_MAPPED_PREFIX) else flow_pb2.IPv6
        return version in wanted

    return [party("source", is_one)]
