"""The levels of aggregation: what the kernel is told, and which rows are left out."""

from __future__ import annotations

import numpy as np
import pytest

from services.agent.datapath.settings import Settings
from services.agent.events.aggregation import Aggregation, aggregate, interval_s
from services.flows.columns import Kind
from services.flows.facets import AUDIT

EVERYTHING = [Kind.NEW, Kind.DROP, Kind.UPDATE, Kind.CLOSE, Kind.VERDICT_CHANGE, Kind.HTTP, Kind.DNS_QUERY, Kind.NEW]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (Aggregation.PACKETS, EVERYTHING),
        (Aggregation.CONNECTIONS, EVERYTHING),
        # the last one: a connection that policy would have refused
        (Aggregation.SUMMARIES, [Kind.DROP, Kind.CLOSE, Kind.VERDICT_CHANGE, Kind.HTTP, Kind.DNS_QUERY, Kind.NEW]),
    ],
)
def test_what_each_level_tells(level: Aggregation, expected: list[Kind]) -> None:
    rows = len(EVERYTHING)
    verdicts = np.ones(rows, np.uint8)
    verdicts[-1] = AUDIT
    columns = {"time_ns": np.arange(rows), "kind": np.array(EVERYTHING, np.uint8), "verdict": verdicts}
    kept, left_out = aggregate(columns, level)
    assert kept["kind"].tolist() == expected
    assert len(kept["time_ns"]) + left_out == rows


@pytest.mark.parametrize(("level", "nanoseconds"), [("packets", 1), ("connections", 2_500_000_000), ("summaries", 0)])
def test_what_the_kernel_is_told(level: str, nanoseconds: int) -> None:
    settings = Settings(update_interval_s=interval_s(Aggregation(level), 2.5))
    assert int.from_bytes(settings.pack()[:8], "little") == nanoseconds
