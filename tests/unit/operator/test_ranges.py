"""Blocks of pod addresses for nodes: tables, and what holds for all inputs."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.operator import node_ranges, trim
from services.operator.lost_ranges import addresses_of, implied
from services.operator.pools import configured_pool, pool_of, usable
from services.operator.ranges import Claim, Pool, Share, assign, overlaps

SIZES = {4: 24, 6: 120}


def pool(name: str, *ranges: str, size4: int = 24, size6: int = 120) -> Pool:
    return configured_pool(name, ranges, {4: size4, 6: size6})


def claim(node: str, *held: str, want: int = 1, of: str = "default") -> Claim:
    return Claim(node, node, {of: tuple(map(ipaddress.ip_network, held))} if held else {}, {of: want})


def texts(share: Share, name: str = "default") -> list[str]:
    return [str(block) for block in share.blocks.get(name, ())]


DUAL = pool("default", "10.0.0.0/22", "fd00::/118")


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([claim("a")], {"a": ["10.0.0.0/24", "fd00::/120"]}),
        ([claim("a"), claim("b")], {"a": ["10.0.0.0/24", "fd00::/120"], "b": ["10.0.1.0/24", "fd00::100/120"]}),
        ([claim("a", "10.0.2.0/24", "fd00::/120")], {"a": ["10.0.2.0/24", "fd00::/120"]}),
        # a new block comes after the highest one that is out, and then from the start
        ([claim("a", "10.0.2.0/24", "fd00::/120"), claim("b")], {"b": ["10.0.3.0/24", "fd00::100/120"]}),
        ([claim("a", "10.0.3.0/24", "fd00::300/120"), claim("b")], {"b": ["10.0.0.0/24", "fd00::/120"]}),
        ([claim("a", want=2)], {"a": ["10.0.0.0/24", "10.0.1.0/24", "fd00::/120", "fd00::100/120"]}),
        # more than it wants: it keeps them
        ([claim("a", "10.0.0.0/24", "10.0.1.0/24", "fd00::/120")], {"a": ["10.0.0.0/24", "10.0.1.0/24", "fd00::/120"]}),
        ([], {}),
    ],
)
def test_blocks(claims: list[Claim], expected: dict[str, list[str]]) -> None:
    shares = assign([DUAL], claims)
    assert {node: texts(shares[node]) for node in expected} == expected
    assert not any(share.problems for share in shares.values())


def test_an_empty_pool_is_told_with_what_to_do() -> None:
    shares = assign([pool("default", "10.0.0.0/24")], [claim("a"), claim("b")])
    assert texts(shares["a"]) == ["10.0.0.0/24"]
    assert shares["b"] == Share(
        {}, ("pool 'default' has no free IPv4 block of /24: all 1 are given out; add a range to it",)
    )


def test_one_family_can_be_exhausted_alone() -> None:
    shares = assign([pool("default", "10.0.0.0/24", "fd00::/119")], [claim("a"), claim("b")])
    assert texts(shares["b"]) == ["fd00::100/120"]
    assert "IPv4" in shares["b"].problems[0]


def test_of_two_nodes_with_one_block_the_older_keeps_it() -> None:
    shares = assign([DUAL], [claim("new", "10.0.1.0/24"), claim("a", "10.0.1.0/24")])
    assert texts(shares["a"])[0] == "10.0.1.0/24"
    assert texts(shares["new"])[0] == "10.0.2.0/24"
    assert shares["new"].problems == ("10.0.1.0/24 was taken back: node a holds it, too, and is older",)


def test_a_block_that_left_its_pool_stays_with_its_node_and_a_good_one_comes() -> None:
    shares = assign([DUAL], [claim("a", "192.168.0.0/24", "fd00::/120")])
    assert texts(shares["a"]) == ["10.0.0.0/24", "192.168.0.0/24", "fd00::/120"]
    assert "not in pool 'default' any more" in shares["a"].problems[0]


def test_a_pool_that_does_not_exist() -> None:
    assert "no pool 'gold'" in assign([DUAL], [claim("a", of="gold")])["a"].problems[0]


def test_pools_that_overlap_never_give_the_same_addresses() -> None:
    pools = [DUAL, pool("other", "10.0.0.0/23")]
    shares = assign(pools, [claim("a"), claim("b", of="other"), claim("c", of="other"), claim("d", of="other")])
    blocks = [block for share in shares.values() for found in share.blocks.values() for block in found]
    assert not any(one.overlaps(two) for one, two in combinations(blocks, 2) if one.version == two.version)
    assert shares["d"].problems


def test_a_large_pool_that_is_full_is_found_out_quickly() -> None:
    """A range in the way is stepped over, not counted through: 2^72 blocks here."""
    holder = Claim("a", "a", {"other": (ipaddress.ip_network("fd00::/48"),)}, {})
    assert assign([pool("default", "fd00::/48")], [holder, claim("b")])["b"].problems


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({}, "spec: a pool needs"),
        ({"ipv4": {"cidrs": ["10.0.0.0/33"]}}, r"spec.ipv4.cidrs\[0\]: must be a range"),
        ({"ipv4": {"cidrs": ["fd00::/64"]}}, "is not IPv4"),
        ({"ipv4": {"cidrs": [None]}}, r"spec.ipv4.cidrs\[0\]"),
        ({"ipv4": {"cidrs": ["10.0.0.0/24"], "maskSize": 20}}, "do not fit"),
        ({"ipv4": {"cidrs": ["10.0.0.0/8"], "maskSize": 8}}, "too large"),
        ({"ipv6": {"cidrs": ["fd00::/48"], "maskSize": "120"}}, "do not fit"),
    ],
)
def test_pools_that_cannot_be_read(spec: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        pool_of({"metadata": {"name": "p"}, "spec": spec})


def test_what_a_block_is_enough_for() -> None:
    assert usable(pool("p", "10.0.0.0/16")) == 253
    assert usable(pool("p", "10.0.0.0/16", "fd00::/64", size4=26)) == 61


def running(node: str, *addresses: str, **more: object) -> dict[str, object]:
    metadata = {"name": "p", "namespace": "default"}
    status = {"phase": "Running", "podIPs": [{"ip": each} for each in addresses]}
    return trim.pod({"metadata": metadata, "spec": {"nodeName": node, **more}, "status": status})


def test_nodes_whose_objects_are_lost_get_back_what_their_pods_have() -> None:
    """Their definition was deleted, say. By age alone `old` would get the block that pods of `new` have."""
    pods = [
        running("new", "10.0.0.9", "fd00::9"),
        running("old", "10.0.2.7", "fd00::307"),
        running("old", "10.0.0.1", hostNetwork=True),
        running("kept", "10.0.1.1"),
        running("new", "nonsense", "192.0.2.1"),
    ]
    nodes = [{"metadata": {"name": name, "creationTimestamp": name}} for name in ("empty", "kept", "new", "old")]
    blocks = [{"pool": "default", "cidrs": ["10.0.1.0/24", "fd00::100/120"]}]
    claims = {"kept": {"metadata": {"name": "kept"}, "spec": {"ipam": {"pools": blocks}}}}
    addresses = addresses_of(pods, {"empty", "new", "old"})
    found = node_ranges.plan(nodes, claims, {}, DUAL, {}, datetime(2026, 1, 1, tzinfo=UTC), addresses)
    made = {
        write.name: write.document["spec"]["ipam"]["pools"][0]["cidrs"]
        for write in found.writes
        if write.verb == "create" and write.document
    }
    assert made == {
        "new": ["10.0.0.0/24", "fd00::/120"],
        "old": ["10.0.2.0/24", "fd00::300/120"],
        "empty": ["10.0.3.0/24", "fd00::200/120"],
    }


def test_addresses_all_over_the_pool_are_no_reason_to_give_all_of_it_away() -> None:
    addresses = [ipaddress.ip_address(text) for text in ("10.0.0.1", "10.0.1.1", "10.0.2.1", "10.0.2.2", "10.0.3.1")]
    found = implied(addresses, {"default": DUAL}, {"default": 1})
    assert [str(block) for block in found["default"]] == ["10.0.2.0/24", "10.0.0.0/24"]


def test_who_overlaps() -> None:
    ranges = [("a", ipaddress.ip_network("10.0.0.0/16")), ("b", ipaddress.ip_network("10.0.5.0/24"))]
    ranges += [("c", ipaddress.ip_network("10.1.0.0/24")), ("a", ipaddress.ip_network("10.0.6.0/24"))]
    assert overlaps(ranges) == [("a", "b", ipaddress.ip_network("10.0.5.0/24"))]


# -- for all inputs ----------------------------------------------------------------------------------------------------

_blocks4 = st.integers(0, 9).map(lambda n: ipaddress.ip_network(f"10.0.{n}.0/24"))
_blocks6 = st.integers(0, 9).map(lambda n: ipaddress.ip_network(f"fd00::{n:x}00/120"))
_held = st.dictionaries(st.sampled_from(["default", "gold"]), st.lists(_blocks4 | _blocks6, max_size=3).map(tuple))
_wants = st.dictionaries(st.sampled_from(["default", "gold", "none"]), st.integers(0, 3))
_claims = st.lists(
    st.builds(Claim, st.sampled_from("abcdef"), st.sampled_from(["1", "2"]), _held, _wants),
    max_size=6,
    unique_by=lambda each: each.node,
)
_POOLS = [pool("default", "10.0.0.0/22", "fd00::/118"), pool("gold", "10.0.4.0/23", "10.0.0.0/23", "fd00::400/119")]


@settings(max_examples=300, deadline=None)
@given(_claims, st.randoms())
def test_for_all_claims(claims: list[Claim], random: object) -> None:
    shares = assign(_POOLS, claims)
    blocks = [block for share in shares.values() for found in share.blocks.values() for block in found]
    assert not any(one.overlaps(two) for one, two in combinations(blocks, 2) if one.version == two.version)
    shuffled = list(claims)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign(list(reversed(_POOLS)), shuffled) == shares, "the order of arguments decides nothing"
    settled = [Claim(each.node, each.created, shares[each.node].blocks, each.wants) for each in claims]
    again = assign(_POOLS, settled)
    assert {n: s.blocks for n, s in again.items()} == {n: s.blocks for n, s in shares.items()}, "it is stable"
    for each in claims:
        share = shares[each.node]
        for name, count in each.wants.items():
            for version in (4, 6):
                have = sum(block.version == version for block in share.blocks.get(name, ()))
                assert have >= count or share.problems, "what is missing is told"
        for name, held in each.holds.items():
            for block in held:
                kept = block in share.blocks.get(name, ())
                assert kept or any(str(block) in problem for problem in share.problems), "what is taken back is told"
