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
    ipam = Ipam(parse_ranges(["10.0.0.0/24", "10.0.1.0/30"], "x"))
    ipam.allocate()
    with pytest.raises(Exhausted):
        ipam.allocate()
    assert [pool.used for pool in ipam.pools] == [1, 1]


def test_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match="pod_cidr4: "):
        parse_ranges(["10.0.0.1/24"], "pod_cidr4")
