"""Translation (`bpf/lib/snat.h`, `bpf/lib/netdev.h`): pairs of entries, and the node's devices."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

import numpy as np

from services.agent.abi.layout import Address, Struct

NETDEV_NODE = 0
"""Key of the node's official addresses in map `netdevs`; all others are interface indexes."""


class NatWay(IntEnum):
    """`enum nat_way`: where the packet of an entry is met."""

    IN = 0
    OUT = 1


class NatFlags(IntFlag):
    """`enum nat_entry_flags`."""

    ANSWER = 1
    """Of the pair, the one for answers."""
    PEER_OUT = 2
    """The pair's other entry is met on the way out."""
    NODE = 4
    """The node's own connection: nothing changes, the port is taken."""
    DSR = 8
    """The other half is on another node: where the backend is, or where the client came in."""
    SEEN_REPLY = 16
    FIN_ORIGINAL = 32
    FIN_REPLY = 64
    RST = 128


class NatKey(Struct):
    """`struct nat_key`, 40 bytes: the packet as it is before. Ports in network order."""

    _fields_ = [
        ("saddr", Address),
        ("daddr", Address),
        ("sport", ctypes.c_uint16),
        ("dport", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("way", ctypes.c_uint8),
        ("pad", ctypes.c_uint16),
    ]


class NatEntry(Struct):
    """`struct nat_entry`, 64 bytes: what the packet's ends become. Times: coarse monotonic clock."""

    _fields_ = [
        ("saddr", Address),
        ("daddr", Address),
        ("sport", ctypes.c_uint16),
        ("dport", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("slot", ctypes.c_uint16),
        ("service_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("created_ns", ctypes.c_uint64),
        ("expires_ns", ctypes.c_uint64),
    ]


class NetdevInfo(Struct):
    """`struct netdev_info`, 32 bytes: the node's addresses on a device, zero where there is none."""

    _fields_ = [("ipv4", Address), ("ipv6", Address)]


NAT_KEY = np.dtype((np.void, ctypes.sizeof(NatKey)))
"""Keys of many entries at once; nobody looks into them."""
NAT_ENTRY = np.dtype(
    [
        ("saddr", "u1", 16),
        ("daddr", "u1", 16),
        ("sport", "<u2"),
        ("dport", "<u2"),
        ("flags", "<u2"),
        ("slot", "<u2"),
        ("service_id", "<u4"),
        ("pad", "<u4"),
        ("created_ns", "<u8"),
        ("expires_ns", "<u8"),
    ]
)
"""The same, for many entries at once."""
