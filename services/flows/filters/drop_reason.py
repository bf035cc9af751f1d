"""`drop_reason_desc`: the verdict is DROPPED and the reason, as Hubble knows it, is listed."""

from __future__ import annotations

import numpy as np

from services.common.pb.flow import flow_pb2
from services.flows.columns import Kind
from services.flows.facets import DROPPED, HUBBLE_REASON
from services.flows.filters.base import Condition


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    if not given.drop_reason_desc:
        return []
    wanted = np.array(sorted(set(given.drop_reason_desc)), np.int64)
    # Denied HTTP requests carry no reason (Hubble API, 5.1): theirs counts as 0.
    return [
        lambda rows: (
            (rows["verdict"] == DROPPED)
            & np.isin(np.where(rows["kind"] == Kind.HTTP, 0, HUBBLE_REASON[rows["drop_reason"]]), wanted)
        )
    ]
