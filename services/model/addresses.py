"""Addresses are 16 bytes everywhere in maps and records: IPv4 travels as v4-mapped (RFC 4291, 2.5.5.2).

One representation means dual stack is not a second code path.
"""

from __future__ import annotations

import contextlib
import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

V4_MAPPED_PREFIX = bytes(10) + b"\xff\xff"


def to_bytes(address: IPAddress) -> bytes:
    """16 bytes in network order."""
    return address.packed if address.version == 6 else V4_MAPPED_PREFIX + address.packed


def from_bytes(raw: bytes) -> IPAddress:
    """Inverse of `to_bytes`; raises ValueError unless `raw` is 16 bytes."""
    if len(raw) != 16:
        raise ValueError(f"an address record has 16 bytes, not {len(raw)}")
    if raw[:12] == V4_MAPPED_PREFIX:
        return ipaddress.IPv4Address(raw[12:])
    return ipaddress.IPv6Address(raw)


def prefix_of(text: str | IPAddress) -> IPNetwork:
    """As `ipaddress.ip_network`, which gives every network of one address a function of its own to list it with: 300
    bytes for each pod of the cluster, and nobody calls it."""
    network = ipaddress.ip_network(text)
    with contextlib.suppress(AttributeError):
        delattr(network, "hosts")
    return network


def prefix_to_key(network: IPNetwork) -> tuple[int, bytes]:
    """(prefix length over 128 bits, 16 address bytes) of a network."""
    offset = 96 if network.version == 4 else 0
    return network.prefixlen + offset, to_bytes(network.network_address)


def key_to_prefix(prefix_length: int, raw: bytes) -> IPNetwork:
    """Inverse of `prefix_to_key`."""
    address = from_bytes(raw)
    if address.version == 4 and prefix_length >= 96:
        return ipaddress.IPv4Network((address, prefix_length - 96))
    return ipaddress.IPv6Network((raw, prefix_length))
