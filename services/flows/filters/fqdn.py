"""`source_fqdn`, `destination_fqdn`: names that an address was learned under; `dns_query`: the name in a message."""

from __future__ import annotations

import re
from collections.abc import Callable

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array
from services.flows.entries import L7Record, NameRecord, Party
from services.flows.facets import is_dns
from services.flows.filters.base import Condition, Pattern, Rows, party, regex, where_entry
from services.flows.filters.names import fqdn_pattern


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    found: list[Condition] = []
    for side, field, values in (
        ("source", "source_fqdn", given.source_fqdn),
        ("destination", "destination_fqdn", given.destination_fqdn),
    ):
        if values:
            found.append(party(side, _has_name([fqdn_pattern(value, field) for value in values])))
    if given.dns_query:
        found.append(_asks([regex(value, "dns_query") for value in given.dns_query]))
    return found


def _has_name(patterns: list[re.Pattern[str]]) -> Callable[[Party], bool]:
    return lambda entry: any(pattern.fullmatch(name) for pattern in patterns for name in entry.names)


def _asks(patterns: list[Pattern]) -> Condition:
    def matches(entry: L7Record) -> bool:
        return isinstance(entry, NameRecord) and any(pattern.search(entry.query) for pattern in patterns)

    named = where_entry("http", matches)

    def condition(rows: Rows) -> Array:
        found: Array = named(rows) & is_dns({"kind": rows["kind"]})
        return found

    return condition
