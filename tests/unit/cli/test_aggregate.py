"""Flows counted by what they have in common."""

from __future__ import annotations

import pytest

from services.cli import aggregate
from services.cli.aggregate import KEYS, Groups, duration
from services.common.errors import Invalid
from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2

CLOSE = details_pb2.FlowDetails.CLOSE


def flow(source: str = "web", verdict: int = flow_pb2.FORWARDED, **details: int) -> flow_pb2.Flow:
    found = flow_pb2.Flow(verdict=verdict)  # type: ignore[arg-type]
    found.source.namespace, found.destination.namespace = "default", "default"
    found.source.workloads.add(name=source, kind="Deployment")
    found.destination.pod_name = "db-0"
    found.l4.TCP.destination_port = 5432
    if details:
        found.extensions.Pack(details_pb2.FlowDetails(**details))  # type: ignore[arg-type]
    return found


def test_counts_traffic_and_times_of_connections_that_ended() -> None:
    groups = Groups(["source", "destination", "port", "verdict"])
    groups.add(flow(kind=details_pb2.FlowDetails.NEW))
    for rtt, bytes_ in ((100, 10), (300, 20), (2_500, 30)):
        groups.add(flow(kind=CLOSE, rtt_us=rtt, bytes=bytes_, reply_bytes=1, packets=2, duration_us=rtt * 1000))
    groups.add(flow("cron", flow_pb2.DROPPED, kind=details_pb2.FlowDetails.DROP, packets=9))
    assert groups.items() == [
        {"source": "default/web", "destination": "default/db-0", "port": "5432/TCP", "verdict": "FORWARDED", "flows": 4}
        | {"packets": 6, "bytes": 63, "rtt p50": "300us", "rtt p99": "2.5ms"}
        | {"duration p50": "300.0ms", "duration p99": "2.5s"},
        {"source": "default/cron", "destination": "default/db-0", "port": "5432/TCP", "verdict": "DROPPED", "flows": 1}
        | {"packets": 0, "bytes": 0, "rtt p50": "", "rtt p99": "", "duration p50": "", "duration p99": ""},
    ]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_works_on_every_flow(key: str) -> None:
    groups = Groups([key])
    groups.add(flow_pb2.Flow())
    groups.add(flow())
    assert sum(item["flows"] for item in groups.items()) == 2


def test_what_is_not_known_and_what_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Invalid, match="'sauce' is not known; use some of source"):
        Groups(["source", "sauce"])
    monkeypatch.setattr(aggregate, "MAX_GROUPS", 2)
    groups = Groups(["source"])
    groups.add(flow("a"))
    groups.add(flow("b"))
    with pytest.raises(Invalid, match="more than 2 groups"):
        groups.add(flow("c"))


@pytest.mark.parametrize(("value", "text"), [(0, "0us"), (999, "999us"), (1500, "1.5ms"), (3_400_000, "3.4s")])
def test_durations(value: int, text: str) -> None:
    assert duration(value) == text
