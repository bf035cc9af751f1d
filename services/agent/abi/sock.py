"""What sockets were connected to (`bpf/lib/sock.h`): socket and backend -> the Service's address that it asked for."""

from __future__ import annotations

import ctypes

import numpy as np

from services.agent.abi.layout import Address, Struct


class SockKey(Struct):
    """`struct sock_key`, 32 bytes. Backend and port are 0 for connected sockets."""

    _fields_ = [
        ("cookie", ctypes.c_uint64),
        ("backend", Address),
        ("port", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 5),
    ]


class SockEntry(Struct):
    """`struct sock_entry`, 48 bytes."""

    _fields_ = [
        ("address", Address),
        ("backend", Address),
        ("netns", ctypes.c_uint64),
        ("service_id", ctypes.c_uint32),
        ("port", ctypes.c_uint16),
        ("backend_port", ctypes.c_uint16),
    ]


SOCK_KEY = np.dtype(
    [
        ("cookie", "<u8"),
        ("backend", "u1", 16),
        ("port", "<u2"),
        ("protocol", "u1"),
        ("pad", "u1", 5),
    ]
)
"""`SockKey` for numpy."""
SOCK_ENTRY = np.dtype(
    [
        ("address", "u1", 16),
        ("backend", "u1", 16),
        ("netns", "<u8"),
        ("service_id", "<u4"),
        ("port", "<u2"),
        ("backend_port", "<u2"),
    ]
)
"""`SockEntry` for numpy."""
