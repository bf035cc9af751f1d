"""Room in the connection table (`bpf/lib/ct_room.h`): the queue of connections that have not settled, and quotas."""

from __future__ import annotations

import ctypes

import numpy as np

from services.agent.abi.conntrack import CtKey
from services.agent.abi.layout import Struct

QUEUE_MIN, QUEUE_MAX = 1024, 32768
"""Places per CPU. At least: `CT_QUEUE_MIN_MASK` + 1. At most: a flood of a million packets per second takes 30 ms for a
lap, in which others can complete a handshake; more places would only be colder memory."""


class CtPlace(Struct):
    """`struct ct_place`, 48 bytes: who stands here in the queue. Number 0: nobody."""

    _fields_ = [("key", CtKey), ("number", ctypes.c_uint32), ("pad", ctypes.c_uint32)]


class CtUsage(Struct):
    """`struct ct_usage`, a cache line per endpoint; only the kernel writes it."""

    _fields_ = [
        ("settled", ctypes.c_uint32),
        ("evicted", ctypes.c_uint32),
        ("refused", ctypes.c_uint32),
        ("pad", ctypes.c_uint32 * 13),
    ]


CT_USAGE = np.dtype([("settled", "<u4"), ("evicted", "<u4"), ("refused", "<u4"), ("pad", "<u4", (13,))])


def queue_places(ct_max: int, cpus: int) -> int:
    """Places per CPU, a power of two: at most half of the table for all CPUs together, the rest is for settled ones."""
    share = min(max(ct_max // 2 // cpus, QUEUE_MIN), QUEUE_MAX)
    return 1 << (share.bit_length() - 1)
