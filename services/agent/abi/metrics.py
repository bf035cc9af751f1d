"""Packet counters (`bpf/lib/metrics.h`) and lost events (`bpf/lib/events.h`), both per CPU."""

from __future__ import annotations

import ctypes

from services.agent.abi.layout import Struct


class Metric(Struct):
    """`struct metric`, 16 bytes, at reason x 4 + direction: 0 unknown, 1 ingress, 2 egress; reason 0 = forwarded."""

    _fields_ = [("packets", ctypes.c_uint64), ("bytes", ctypes.c_uint64)]


LOST_ENTRIES = 16
"""Index of map `lost`: `events.EventType`."""
