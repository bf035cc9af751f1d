"""`source_label`, `destination_label`, `node_labels`: label selectors."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.entries import NodeRef, Party
from services.flows.filters.base import Condition, party, where_entry
from services.flows.filters.selector import selector


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    found: list[Condition] = []
    for column, values in (("source", given.source_label), ("destination", given.destination_label)):
        if values:
            found.append(_of_party(column, list(values)))
    if given.node_labels:
        selects = selector(list(given.node_labels), "node_labels")

        def node_has(entry: NodeRef) -> bool:
            return selects(entry.labels)

        found.append(where_entry("node", node_has))
    return found


def _of_party(column: str, values: list[str]) -> Condition:
    selects = selector(values, f"{column}_label")
    known: dict[tuple[str, ...], bool] = {}  # replicas share their labels

    def has(entry: Party) -> bool:
        answer = known.get(entry.labels)
        if answer is None:
            answer = known[entry.labels] = selects(entry.labels)
        return answer

    return party(column, has)
