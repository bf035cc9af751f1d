"""Addresses of both families in one 16-byte form, there and back."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.addresses import from_bytes, key_to_prefix, prefix_to_key, to_bytes
from services.model.identity import CLUSTER_MAX, LOCAL_MIN, is_cluster, is_local, is_reserved


@given(st.ip_addresses())
def test_addresses_come_back(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    raw = to_bytes(address)
    assert len(raw) == 16
    mapped = getattr(address, "ipv4_mapped", None)
    assert from_bytes(raw) == (mapped or address)


@pytest.mark.parametrize(
    ("text", "bits"), [("10.0.0.0/8", 104), ("0.0.0.0/0", 96), ("1.2.3.4/32", 128), ("::/0", 0), ("fd00::/64", 64)]
)
def test_prefixes_come_back(text: str, bits: int) -> None:
    network = ipaddress.ip_network(text)
    assert prefix_to_key(network)[0] == bits
    assert key_to_prefix(*prefix_to_key(network)) == network


def test_a_short_record_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        from_bytes(b"\x01\x02\x03\x04")


@pytest.mark.parametrize(
    ("identity", "kind"),
    [
        *((0, None), (1, is_reserved), (255, is_reserved), (256, is_cluster)),
        *((CLUSTER_MAX, is_cluster), (CLUSTER_MAX + 1, None), (LOCAL_MIN, is_local)),
    ],
)
def test_every_number_has_one_scope(identity: int, kind: object) -> None:
    assert [check for check in (is_reserved, is_cluster, is_local) if check(identity)] == ([kind] if kind else [])
