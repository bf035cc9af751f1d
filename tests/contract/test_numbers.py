"""Numbers that several layers use are the same ones: our vocabulary, the flow API, the kernel's events."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.common.pb.flow import flow_pb2
from services.model.verdict import Direction, DropReason

ROOT = Path(__file__).parents[2]
OWN_REASONS = 220


@pytest.mark.parametrize("reason", [reason for reason in DropReason if reason < OWN_REASONS], ids=lambda r: r.name)
def test_drop_reasons_are_the_fields(reason: DropReason) -> None:
    assert flow_pb2.DropReason.Name(reason) == reason.name


def test_own_drop_reasons_collide_with_none_of_the_fields() -> None:
    fields = set(flow_pb2.DropReason.values())
    assert not fields & {int(reason) for reason in DropReason if reason >= OWN_REASONS}


@pytest.mark.parametrize("direction", list(Direction), ids=lambda d: d.name)
def test_directions_are_the_fields(direction: Direction) -> None:
    assert flow_pb2.TrafficDirection.Name(direction) == direction.name


def test_the_kernel_knows_every_drop_reason_by_its_number() -> None:
    header = (ROOT / "bpf/lib/drop_reasons.h").read_text()
    defined = {name: int(number) for name, number in re.findall(r"\bDROP_(\w+)\s*=\s*(\d+)", header)}
    expected = {reason.name.removeprefix("DROP_"): int(reason) for reason in DropReason}
    assert defined == expected


def test_flow_messages_have_the_public_numbers() -> None:
    fields = {field.name: field.number for field in flow_pb2.Flow.DESCRIPTOR.fields}
    expected = {
        "time": 1, "verdict": 2, "drop_reason": 3, "ethernet": 4, "IP": 5, "l4": 6, "source": 8, "destination": 9,
        "Type": 10, "node_name": 11, "source_names": 13, "destination_names": 14, "l7": 15, "reply": 16,
        "event_type": 19, "source_service": 20, "destination_service": 21, "traffic_direction": 22,
        "policy_match_type": 23, "trace_observation_point": 24, "drop_reason_desc": 25, "is_reply": 26,
        "debug_capture_point": 27, "interface": 28, "proxy_port": 29, "trace_context": 30, "sock_xlate_point": 31,
        "socket_cookie": 32, "cgroup_id": 33, "uuid": 34, "auth_type": 35, "trace_reason": 36, "node_labels": 37,
        "file": 38, "tunnel": 39, "ip_trace_id": 40, "emitter": 41, "egress_allowed_by": 21001,
        "ingress_allowed_by": 21002, "egress_denied_by": 21004, "ingress_denied_by": 21005, "policy_log": 21006,
        "aggregate": 21007, "Summary": 100000, "extensions": 150000,
    }  # fmt: skip
    assert fields == expected
    assert flow_pb2.DESCRIPTOR.package == "flow"
