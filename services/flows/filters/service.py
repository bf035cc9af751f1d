"""`source_service`, `destination_service`: `namespace/prefix` of the Service that the client addressed."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.entries import ServiceRef
from services.flows.filters.base import Condition, Rows, where_entry
from services.flows.filters.names import namespaced


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    found: list[Condition] = []
    if given.source_service:
        namespaced(list(given.source_service), "source_service")
        found.append(Rows.none)  # records have the direction of the connection: a Service is never their source
    if given.destination_service:
        matches = namespaced(list(given.destination_service), "destination_service")

        def serves(entry: ServiceRef) -> bool:
            return matches(entry.namespace, entry.name)

        found.append(where_entry("service", serves))
    return found
