"""`uuid`: a flow's uuid is made from its row, and holds its time: candidates are found by time, then compared."""

from __future__ import annotations

import numpy as np

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array
from services.flows.filters.base import Condition, Rows
from services.flows.names import TIME_MASK, UUID_COLUMNS, row_uuids, time_of


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    if not given.uuid:
        return []
    wanted = frozenset(given.uuid)
    times = np.array(sorted({time for text in wanted if (time := time_of(text)) is not None}), np.int64)

    def condition(rows: Rows) -> Array:
        mask = rows.none()
        index = np.flatnonzero(np.isin(rows["time_ns"] & TIME_MASK, times))
        columns = {name: rows[name][index] for name in UUID_COLUMNS}
        uuids = row_uuids(columns, rows.dictionaries) if len(index) else []
        mask[index] = [text in wanted for text in uuids]
        return mask

    return [condition]
