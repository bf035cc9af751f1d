"""Which process is behind a socket (`bpf/lib/process.h`)."""

from __future__ import annotations

import ctypes

import numpy as np

from services.agent.abi.layout import Struct

NAME_BYTES = 16


class Process(Struct):
    """`struct process`, 40 bytes."""

    _fields_ = [
        ("netns", ctypes.c_uint64),
        ("cgroup", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("port", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("listens", ctypes.c_uint8),
        ("name", ctypes.c_char * NAME_BYTES),
    ]


class PortKey(Struct):
    """`struct port_key`, 16 bytes: key of map `listeners`."""

    _fields_ = [
        ("netns", ctypes.c_uint64),
        ("port", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 5),
    ]


class ProcessSettings(Struct):
    """`struct process_settings`, 16 bytes, the only entry of map `process_config`."""

    _fields_ = [("device", ctypes.c_uint64), ("inode", ctypes.c_uint64)]


PROCESS = np.dtype(
    [
        ("netns", "<u8"),
        ("cgroup", "<u8"),
        ("pid", "<u4"),
        ("port", "<u2"),
        ("protocol", "u1"),
        ("listens", "u1"),
        ("name", f"S{NAME_BYTES}"),
    ]
)
"""`Process` for numpy; ports in host order."""
