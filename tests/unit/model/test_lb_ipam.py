"""Addresses of load balancers: stable, unique but where sharing is asked for, and a reason where there is none."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.lb_ipam import Pool, Want, assign, read_ranges
from services.model.objects import ObjectKey

A = ipaddress.ip_address
SMALL = Pool("small", read_ranges([{"cidr": "10.1.0.0/30"}, {"start": "fd00::1", "stop": "fd00::2"}]))


def want(name: str, *versions: int, **more: Any) -> Want:
    key = ObjectKey("Service", more.pop("namespace", "ns"), name)
    return Want(key, versions or (4,), **{"ports": frozenset({(80, 6)}), **more})


def given_to(pools: list[Pool], *wants: Want) -> dict[str, list[str]]:
    return {key.name: [str(a) for a in found.addresses] for key, found in assign(pools, wants).items()}


def test_the_lowest_free_ones_in_both_families_and_a_reason_when_they_are_gone() -> None:
    found = assign([SMALL], [want(name, 4, 6) for name in "abc"])
    assert [str(a) for a in found[ObjectKey("Service", "ns", "a")].addresses] == ["10.1.0.0", "fd00::1"]
    last = found[ObjectKey("Service", "ns", "c")]
    assert ([str(a) for a in last.addresses], last.problem) == (
        ["10.1.0.2"],
        "no pool has a free IPv6 address for the Service",
    )


def test_who_holds_one_keeps_it() -> None:
    held = want("z", held=(A("10.1.0.0"),))
    assert given_to([SMALL], want("a"), held) == {"a": ["10.1.0.1"], "z": ["10.1.0.0"]}
    elsewhere = want("z", held=(A("192.0.2.1"),))
    assert given_to([SMALL], elsewhere) == {"z": ["10.1.0.0"]}
    closed = replace(SMALL, disabled=True)
    assert given_to([closed], want("a"), held) == {"a": [], "z": ["10.1.0.0"]}


@pytest.mark.parametrize(
    ("asked", "addresses", "problem"),
    [
        ("10.1.0.3", ["10.1.0.3"], ""),
        ("10.1.0.0", [], "10.1.0.0 belongs to Service ns/first"),
        ("192.0.2.1", [], "192.0.2.1 is in no pool that the Service may use"),
    ],
)
def test_addresses_that_are_asked_for(asked: str, addresses: list[str], problem: str) -> None:
    first = want("first", created="2025", held=(A("10.1.0.0"),))
    found = assign([SMALL], [first, want("b", created="2026", requested=(A(asked),))])[ObjectKey("Service", "ns", "b")]
    assert ([str(a) for a in found.addresses], found.problem) == (addresses, problem)


def test_pools_choose_their_services() -> None:
    red = Pool("red", read_ranges([{"cidr": "10.2.0.0/30"}]), lambda labels, namespace: labels.get("color") == "red")
    assert given_to([red], want("a"), want("b", labels={"color": "red"})) == {"a": [], "b": ["10.2.0.0"]}


def test_sharing() -> None:
    one = want("a", sharing_key="k")
    other_port = want("b", sharing_key="k", ports=frozenset({(81, 6)}))
    same_port = want("c", sharing_key="k")
    assert given_to([SMALL], one, other_port, same_port) == {"a": ["10.1.0.0"], "b": ["10.1.0.0"], "c": ["10.1.0.1"]}
    far = replace(other_port, key=ObjectKey("Service", "zoo", "b"))
    assert given_to([SMALL], one, far)["b"] == ["10.1.0.1"]
    agreed = frozenset({"*"})
    assert given_to([SMALL], replace(one, sharing_with=agreed), replace(far, sharing_with=agreed))["b"] == ["10.1.0.0"]


@pytest.mark.parametrize(
    "block",
    [{"cidr": "10.0.0.0/99"}, {"start": "10.0.0.2", "stop": "10.0.0.1"}, {"start": "10.0.0.1", "stop": "::1"}, {}],
)
def test_ranges_that_are_none(block: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_ranges([block])


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=30))
def test_no_order_of_events_moves_an_address(events: list[tuple[str, bool]]) -> None:
    held: dict[str, Want] = {}
    for name, there in events:
        before = dict(held)
        held.pop(name, None)
        if there:
            held[name] = before.get(name, want(name))
        found = assign([SMALL], held.values())
        addresses = [a for assignment in found.values() for a in assignment.addresses]
        assert len(set(addresses)) == len(addresses)
        for other, had in before.items():
            if had.held and other in held:
                assert found[had.key].addresses == had.held
        held = {other: replace(w, held=found[w.key].addresses) for other, w in held.items()}
