"""How much is told of a connection: every packet, its opening, counters and end, or its end alone.

Between packets and connections the kernel decides (`update_interval_ns`); openings are left out here, because what
policy would have refused, and every other kind of record, is told at all levels.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from services.flows.columns import Columns, Kind, length, take
from services.flows.facets import AUDIT

EVERY_PACKET_S = 1.5e-9
"""What the kernel takes for "every packet" (`EVERY_PACKET_NS`), safe from rounding."""


class Aggregation(StrEnum):
    """The levels, finest first."""

    PACKETS = "packets"
    CONNECTIONS = "connections"
    SUMMARIES = "summaries"


def interval_s(level: Aggregation, configured_s: float) -> float:
    """Seconds between records of a live connection; 0 = none."""
    return {Aggregation.PACKETS: EVERY_PACKET_S, Aggregation.SUMMARIES: 0.0}.get(level, configured_s)


def aggregate(columns: Columns, level: Aggregation) -> tuple[Columns, int]:
    """(the rows that the level tells, how many it leaves out)."""
    if level is not Aggregation.SUMMARIES:
        return columns, 0
    kinds = columns["kind"]
    left_out = ((kinds == Kind.NEW) & (columns["verdict"] != AUDIT)) | (kinds == Kind.UPDATE)
    return take(columns, np.flatnonzero(~left_out)), length(columns) - int((~left_out).sum())
