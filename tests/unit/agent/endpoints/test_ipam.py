"""Address pools: what is nobody's, how late an address is used again."""

from __future__ import annotations

import ipaddress

import pytest

from services.agent.endpoints.ipam import AddressPool, Ipam, parse_ranges
from services.common.errors import Conflict, Exhausted


def test_network_gateway_and_broadcast_are_never_given() -> None:
    pool = AddressPool(ipaddress.ip_network("10.0.0.0/29"))
    assert [str(pool.allocate()) for _ in range(5)] == [f"10.0.0.{n}" for n in range(2, 7)]
    assert str(pool.gateway) == "10.0.0.1"
    with pytest.raises(Exhausted):
        pool.allocate()


def test_an_address_is_used_again_as_late_as_possible() -> None:
    pool = AddressPool(ipaddress.ip_network("10.0.0.0/29"))
    first = pool.allocate()
    pool.release(first)
    assert [str(pool.allocate()) for _ in range(5)] == [f"10.0.0.{n}" for n in (3, 4, 5, 6, 2)]


def test_an_ipv6_range_is_as_large_as_it_needs_to_be() -> None:
    pool = AddressPool(ipaddress.ip_network("fd00::/64"))
    assert str(pool.allocate()) == "fd00::2"
    assert pool.size == (1 << 16) - 2


def test_held_addresses_are_skipped_and_held_once() -> None:
    pool = AddressPool(ipaddress.ip_network("10.0.0.0/24"))
    pool.hold(ipaddress.ip_address("10.0.0.2"))
    assert str(pool.allocate()) == "10.0.0.3"
    with pytest.raises(Conflict):
        pool.hold(ipaddress.ip_address("10.0.0.2"))


def test_one_family_used_up_takes_nothing_of_the_other() -> None:
    ipam = Ipam(parse_ranges(["fd00::/120", "10.0.1.0/30"], "x"))
    assert [address.version for address in ipam.allocate()] == [4, 6]
    with pytest.raises(Exhausted):
        ipam.allocate()
    assert [pool.used for pool in ipam.pools] == [1, 1]


def test_a_pool_of_several_ranges_goes_on_with_the_next_one() -> None:
    ipam = Ipam(parse_ranges(["10.0.0.0/30", "10.0.1.0/30"], "x"))
    assert [str(ipam.allocate()[0]) for _ in range(2)] == ["10.0.0.2", "10.0.1.2"]
    with pytest.raises(Exhausted, match="add a pod range"):
        ipam.allocate()
    ipam.set({"": parse_ranges(["10.0.0.0/30", "10.0.1.0/30", "10.0.2.0/30"], "x")})
    assert str(ipam.allocate()[0]) == "10.0.2.2"


def test_pools_by_name_and_one_that_is_not_there_yet() -> None:
    ipam = Ipam(parse_ranges(["10.0.0.0/24"], "x"))
    with pytest.raises(Exhausted, match="'gold' has no range on this node yet"):
        ipam.allocate("gold")
    ipam.set({"": parse_ranges(["10.0.0.0/24"], "x"), "gold": parse_ranges(["10.9.0.0/24"], "x")})
    assert (str(ipam.allocate("gold")[0]), str(ipam.allocate()[0])) == ("10.9.0.2", "10.0.0.2")


def test_a_range_that_changes_leaves_addresses_with_their_holders() -> None:
    old, new = parse_ranges(["10.0.0.0/24"], "x"), parse_ranges(["10.0.0.0/25"], "x")
    ipam = Ipam(old)
    first = ipam.allocate()
    ipam.set({"": new})
    assert str(ipam.allocate()[0]) == "10.0.0.3", "what is held of the old range is held of the new one"
    ipam.set({"": parse_ranges(["10.7.0.0/24"], "x")})
    assert str(ipam.allocate()[0]) == "10.7.0.2"
    ipam.set({"": old})
    ipam.release(first)
    assert [pool.used for pool in ipam.pools] == [1], "10.0.0.3 is held still"


def test_what_a_restart_finds_counts_once_its_range_is_known() -> None:
    ipam = Ipam()
    ipam.hold([ipaddress.ip_address("10.0.0.2")])
    with pytest.raises(Exhausted, match="no pod range yet"):
        ipam.allocate()
    ipam.set({"": parse_ranges(["10.0.0.0/24"], "x")})
    assert str(ipam.allocate()[0]) == "10.0.0.3"


def test_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match="pod_cidr4: "):
        parse_ranges(["10.0.0.1/24"], "pod_cidr4")


def test_why_there_is_no_address_left() -> None:
    assert Ipam().exhausted() == "this node has no pod range yet"
    ipam = Ipam(parse_ranges(["10.0.0.0/30", "fd00::/64"], "x"))
    while not ipam.exhausted():
        ipam.allocate()
    assert ipam.exhausted() == "no free address in 10.0.0.0/30"
    with pytest.raises(Exhausted):
        ipam.allocate()
