"""`source_ip`, `destination_ip`, `source_ip_xlated`: textual equality, or containment for a CIDR."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from services.common.pb.flow import flow_pb2
from services.flows.entries import Party
from services.flows.filters.base import Condition, FilterError, Rows, party
from services.model.addresses import IPNetwork, from_bytes


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    found: list[Condition] = []
    if given.source_ip:
        found.append(party("source", _matcher(list(given.source_ip), "source_ip")))
    if given.destination_ip:
        found.append(party("destination", _matcher(list(given.destination_ip), "destination_ip")))
    if given.source_ip_xlated:
        _matcher(list(given.source_ip_xlated), "source_ip_xlated")
        found.append(Rows.none)  # the datapath translates no source addresses
    return found


def _matcher(values: list[str], field: str) -> Callable[[Party], bool]:
    texts: set[str] = set()
    networks: list[IPNetwork] = []
    for value in values:
        try:
            if "/" in value:
                networks.append(ipaddress.ip_network(value, strict=False))
            else:
                ipaddress.ip_address(value)
                texts.add(value)
        except ValueError as error:
            raise FilterError(f"{field}: {value!r} is neither an address nor a CIDR") from error

    def matches(entry: Party) -> bool:
        address = from_bytes(entry.address)
        return str(address) in texts or any(address in network for network in networks)

    return matches
