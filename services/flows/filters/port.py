"""`source_port`, `destination_port`: of TCP, UDP and SCTP; other protocols never match."""

from __future__ import annotations

import numpy as np

from services.common.pb.flow import flow_pb2
from services.flows.filters.base import Condition, FilterError, isin
from services.model.verdict import Protocol

WITH_PORTS = np.array([Protocol.TCP, Protocol.UDP, Protocol.SCTP])


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    sides = (("source_port", given.source_port), ("destination_port", given.destination_port))
    return [_of(column, list(values)) for column, values in sides if values]


def _of(column: str, values: list[str]) -> Condition:
    for value in values:
        if not (value.isascii() and value.isdigit() and int(value) <= 65535):
            raise FilterError(f"{column}: {value!r} is not a port (0 to 65535)")
    wanted = np.array([int(value) for value in values])
    return lambda rows: isin(rows[column], wanted) & isin(rows["protocol"], WITH_PORTS)
