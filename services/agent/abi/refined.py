"""Pods of one identity that rules tell apart (`bpf/lib/refined.h`): address -> what policy knows it by, a u32."""

from __future__ import annotations

import ctypes

from services.agent.abi.layout import Address, Struct


class RefinedKey(Struct):
    """`struct refined_key`, 20 bytes. The entry counts while the address has `identity`."""

    _fields_ = [("address", Address), ("identity", ctypes.c_uint32)]
