"""Address table (`bpf/lib/ipcache.h`): prefix -> identity and, for remote pods, the node that has them."""

from __future__ import annotations

import ctypes
from enum import IntFlag

from services.agent.abi.layout import Address, Struct


class IpcacheKey(Struct):
    """`struct ipcache_key`, 20 bytes, LPM over 128 bits (IPv4 prefixes are 96 bits longer than written)."""

    _fields_ = [("prefixlen", ctypes.c_uint32), ("address", Address)]


class RemoteFlags(IntFlag):
    """`enum remote_flags`."""

    ROUTED = 1
    """Reached by routes: `tunnel_endpoint` is its node, but no way to send."""


class RemoteEndpointInfo(Struct):
    """`struct remote_endpoint_info`, 24 bytes. `tunnel_endpoint` is the node that has it; all zero: this one, or not
    known."""

    _fields_ = [
        ("identity", ctypes.c_uint32),
        ("tunnel_endpoint", Address),
        ("flags", ctypes.c_uint16),
        ("key", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
    ]
