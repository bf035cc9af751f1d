"""`tcp_flags`: every flag that is true in the element is true in the flow; false means "don't care"."""

from __future__ import annotations

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array, Kind
from services.flows.filters.base import Condition, Rows
from services.model.verdict import Protocol

BITS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ECE": 64, "CWR": 128}


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    if not given.tcp_flags:
        return []
    # NS is no bit of the flags byte that the datapath records: asking for it matches nothing.
    wanted = [
        sum(bit for name, bit in BITS.items() if getattr(element, name))
        for element in given.tcp_flags
        if not element.NS
    ]

    def condition(rows: Rows) -> Array:
        mask = rows.none()
        for bits in wanted:
            mask |= (rows["tcp_flags"] & bits) == bits
        mask &= (rows["protocol"] == Protocol.TCP) & (rows["kind"] != Kind.HTTP)
        return mask

    return [condition]
