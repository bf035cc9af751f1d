"""What outlived its reason, and what is only late."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from services.model.identity import NumericIdentity
from services.model.objects import IpEntry
from services.operator.endpoints import endpoints, plan_endpoints, plan_slices
from services.operator.tidying import Lasting, leaks, strangers, unused
from services.operator.writes import Write


def row(prefix: str, identity: int, node: str, namespace: str = "", pod: str = "") -> IpEntry:
    return IpEntry(ipaddress.ip_network(prefix), NumericIdentity(identity), node, None, namespace, pod)


ROWS = {
    "10.0.0.2/32": row("10.0.0.2/32", 300, "a", "default", "web"),
    "fd00::2/128": row("fd00::2/128", 300, "a", "default", "web"),
    "10.0.1.2/32": row("10.0.1.2/32", 301, "b", "default", "db"),
    "172.30.0.1/32": row("172.30.0.1/32", 6, "a", "", ""),
}


def test_only_what_lasts_is_due_and_a_break_starts_anew() -> None:
    lasting: Lasting[str] = Lasting(10)
    assert lasting.due(["x"], 0) == set()
    assert lasting.due(["x", "y"], 9.9) == set()
    assert lasting.due(["x", "y"], 10) == {"x"}
    assert lasting.due(["y"], 19) == set()
    assert lasting.due(["x", "y"], 20) == {"y"}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [({"a", "b"}, set()), ({"a"}, {"b"}), ({"c"}, {"a", "b"}), (set(), set())],
    ids=["all there", "one gone", "all others", "no nodes at all: something else is wrong"],
)
def test_nodes_that_are_gone(nodes: set[str], expected: set[str]) -> None:
    assert strangers(ROWS.values(), nodes) == expected


def test_identities_that_no_address_has() -> None:
    assert unused([300, 301, 302], ROWS.values()) == {302}


def test_leaks_of_live_nodes_are_told_those_of_dead_ones_end() -> None:
    assert leaks({302: ["a", "dead"], 303: []}, {"a", "b"}) == ({"dead"}, [(302, "a")])
    assert leaks({302: ["a"]}, set()) == (set(), [])


def test_what_there_is_to_say_about_pods() -> None:
    assert endpoints(ROWS.values()) == {
        ("default", "web"): {"identity": {"id": 300}, "addresses": ["10.0.0.2", "fd00::2"], "node": "a"},
        ("default", "db"): {"identity": {"id": 301}, "addresses": ["10.0.1.2"], "node": "b"},
    }


def carried_out(present: dict[str, dict[str, Any]], writes: list[Write]) -> dict[str, dict[str, Any]]:
    """What an API server has afterwards."""
    after = dict(present)
    for write in writes:
        assert write.document is not None or write.verb == "delete"
        if write.verb == "delete":
            del after[write.name]
        else:
            after[write.name] = {**after.get(write.name, {}), **(write.document or {})}
    return after


def test_endpoints_follow_and_a_plan_that_was_carried_out_is_empty() -> None:
    pods = {("default", name): {"metadata": {"uid": f"u-{name}"}} for name in ("web", "db")}
    labels = lambda number: ("k8s:app=web",) if number == 300 else ()  # noqa: E731
    present = carried_out({}, plan_endpoints(ROWS.values(), labels, pods, []))
    assert present["web"]["identity"] == {"id": 300, "labels": ["k8s:app=web"]}
    assert present["web"]["metadata"]["ownerReferences"][0]["uid"] == "u-web"
    assert plan_endpoints(ROWS.values(), labels, pods, present.values()) == []
    less = {prefix: row for prefix, row in ROWS.items() if row.pod != "db"}
    assert [str(each) for each in plan_endpoints(less.values(), labels, pods, present.values())] == [
        "delete CiliateEndpoint default/db"
    ]
    pods["default", "web"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    del present["web"]
    assert plan_endpoints(ROWS.values(), labels, pods, present.values()) == [], "its namespace may take nothing new"
    moved = {**ROWS, "10.0.1.2/32": row("10.0.1.2/32", 305, "b", "default", "db")}
    (change,) = plan_endpoints(moved.values(), labels, pods, present.values())
    assert (change.verb, change.document and change.document["identity"]["id"]) == ("patch", 305)


def test_a_pod_that_is_gone_gets_no_object() -> None:
    assert plan_endpoints(ROWS.values(), lambda number: (), {}, []) == []


def test_slices_of_a_hundred_and_few_writes_for_few_changes() -> None:
    found = (row(f"10.0.{n >> 8}.{n & 255}/32", 300 + n, "a", "default", f"p{n:03}") for n in range(250))
    rows = {str(each.prefix): each for each in found}
    rows |= {"10.9.0.1/32": row("10.9.0.1/32", 300, "a", "other-ns", "x")}
    present = carried_out({}, plan_slices(rows.values(), []))
    assert {name: len(each["endpoints"]) for name, each in present.items()} == {
        "default-0": 100,
        "default-1": 100,
        "default-2": 50,
        "other-ns-0": 1,
    }
    assert plan_slices(rows.values(), present.values()) == []
    less = {prefix: row for prefix, row in rows.items() if row.pod not in ("p000", "x")}
    assert [str(each) for each in plan_slices(less.values(), present.values())] == [
        "patch CiliateEndpointSlice default-0",
        "delete CiliateEndpointSlice other-ns-0",
    ]
    present = carried_out(present, plan_slices(less.values(), present.values()))
    more = {**less, "10.8.0.1/32": row("10.8.0.1/32", 900, "b", "default", "new")}
    assert [str(each) for each in plan_slices(more.values(), present.values())] == [
        "patch CiliateEndpointSlice default-0"
    ]
