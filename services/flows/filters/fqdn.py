"""`source_fqdn`, `destination_fqdn`, `dns_query`: no DNS is observed yet, so a valid pattern matches nothing."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.filters.base import Condition, Rows, regex
from services.flows.filters.names import fqdn_pattern


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    for field, values in (("source_fqdn", given.source_fqdn), ("destination_fqdn", given.destination_fqdn)):
        for value in values:
            fqdn_pattern(value, field)
    for value in given.dns_query:
        regex(value, "dns_query")
    return [Rows.none] if given.source_fqdn or given.destination_fqdn or given.dns_query else []
