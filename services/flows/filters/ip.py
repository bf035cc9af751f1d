"""`source_ip`, `destination_ip`, `source_ip_xlated`: textual equality, or containment for a CIDR."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from services.common.pb.flow import flow_pb2
from services.flows.entries import Party
from services.flows.filters.base import Condition, FilterError, Rows, party
from services.model.addresses import V4_MAPPED_PREFIX, IPNetwork, from_bytes, prefix_to_key, to_bytes


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
    addresses: set[bytes] = set()
    networks: list[tuple[int, int, bool]] = []
    for value in values:
        try:
            if "/" in value:
                networks.append(_mapped(ipaddress.ip_network(value, strict=False)))
            else:
                addresses.add(to_bytes(ipaddress.ip_address(value)))
                texts.add(value)
        except ValueError as error:
            raise FilterError(f"{field}: {value!r} is neither an address nor a CIDR") from error

    def matches(entry: Party) -> bool:
        if entry.address in addresses and str(from_bytes(entry.address)) in texts:
            return True
        number, v4 = int.from_bytes(entry.address), entry.address.startswith(V4_MAPPED_PREFIX)
        return any(number & mask == first and v4 == wants_v4 for first, mask, wants_v4 in networks)

    return matches


def _mapped(network: IPNetwork) -> tuple[int, int, bool]:
    """(first address, mask, is IPv4) in the 16-byte form that rows have; ::/0 holds no IPv4."""
    length, raw = prefix_to_key(network)
    return int.from_bytes(raw), (1 << 128) - (1 << (128 - length)), network.version == 4
