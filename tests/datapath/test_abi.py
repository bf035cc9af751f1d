"""C and Python agree on numbers (no root needed): enums in the headers against the model and the abi."""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag

import pytest

from services.agent.abi import config, conntrack, egress, endpoints, events, lb, metrics, names, nat
from services.agent.abi.tailcall import TailCall
from services.agent.datapath.program import SOURCE_DIR
from services.model.verdict import Direction, DropReason


def c_enum(header: str, name: str) -> dict[str, int]:
    text = re.sub(r"/\*.*?\*/", "", (SOURCE_DIR / "lib" / header).read_text(), flags=re.S)
    body = re.search(rf"enum {name} \{{(.*?)\}}", text, re.S)
    assert body, f"enum {name} in {header}"
    return {key: int(value, 0) for key, value in re.findall(r"(\w+)\s*=\s*(\w+)", body[1]) if value[0].isdigit()}


def prefixed(enum: type[IntEnum] | type[IntFlag], prefix: str) -> dict[str, int]:
    return {m.name if m.name.startswith(prefix) else prefix + m.name: int(m) for m in enum}


def test_every_drop_reason_has_one_number() -> None:
    assert c_enum("drop_reasons.h", "drop_reason") == prefixed(DropReason, "DROP_")


@pytest.mark.parametrize(
    ("header", "name", "enum", "prefix", "extra"),
    [
        ("events.h", "event_type", events.EventType, "EVENT_", {"EVENT_TYPES"}),
        ("conntrack.h", "ct_status", events.CtState, "CT_", set()),
        ("conntrack.h", "ct_scope", conntrack.CtScope, "CT_SCOPE_", set()),
        ("conntrack.h", "ct_flags", conntrack.CtFlags, "CT_F_", set()),
        ("events.h", "event_flags", events.EventFlags, "EVENT_F_", set()),
        ("endpoints.h", "endpoint_flags", endpoints.EndpointFlags, "ENDPOINT_F_", set()),
        ("config.h", "config_flags", config.ConfigFlags, "CONFIG_F_", set()),
        ("egress_gw.h", "egress_flags", egress.EgressFlags, "EGRESS_F_", set()),
        ("snat.h", "nat_way", nat.NatWay, "NAT_", set()),
        ("snat.h", "nat_entry_flags", nat.NatFlags, "NAT_F_", set()),
        ("types.h", "direction", Direction, "DIR_", set()),
        ("lb.h", "service_scope", lb.Scope, "SCOPE_", set()),
        ("lb.h", "service_flags", lb.ServiceFlags, "SERVICE_F_", set()),
        ("lb.h", "backend_flags", lb.BackendFlags, "BACKEND_F_", set()),
        ("lb.h", "lb_client_kind", lb.ClientKind, "LB_CLIENT_", set()),
        ("l7.h", "l7_kind", names.L7Kind, "L7_KIND_", set()),
        ("tailcall.h", "tail_call", TailCall, "TAIL_", {"TAIL_COUNT"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_enums(header: str, name: str, enum: type[IntEnum] | type[IntFlag], prefix: str, extra: set[str]) -> None:
    ours = c_enum(header, name)
    assert {key: value for key, value in ours.items() if key not in extra} == prefixed(enum, prefix)


def test_versions_and_sizes() -> None:
    text = (SOURCE_DIR / "lib" / "events.h").read_text()
    assert f"#define EVENT_VERSION {events.EVENT_VERSION}" in text
    assert c_enum("events.h", "event_type")["EVENT_TYPES"] == metrics.LOST_ENTRIES
