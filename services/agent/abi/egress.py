"""Egress gateways (`bpf/lib/egress_gw.h`): (pod, destination prefix) -> node and address that its packets leave by."""

from __future__ import annotations

import ctypes
from enum import IntFlag

from services.agent.abi.layout import Address, Struct

SOURCE_BITS = 128
"""Bits of a key's prefix before those of the destination."""


class EgressFlags(IntFlag):
    """`EGRESS_F_*`."""

    EXCLUDED = 1
    """The normal way after all."""
    HERE = 2
    """This node is the gateway."""


class EgressKey(Struct):
    """`struct egress_key`, 36 bytes, LPM over 256 bits: all of the source, then the destination's."""

    _fields_ = [("prefixlen", ctypes.c_uint32), ("source", Address), ("destination", Address)]


class EgressEntry(Struct):
    """`struct egress_entry`, 40 bytes. Neither `gateway` nor HERE: there is no gateway."""

    _fields_ = [
        ("gateway", Address),
        ("address", Address),
        ("ifindex", ctypes.c_uint32),
        ("flags", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
    ]
