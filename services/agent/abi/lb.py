"""Services (`bpf/lib/lb.h`): frontend -> backends, and back (`revnat`).

An update writes backends first and the frontend's count last, so that a packet never meets a slot that is not there.
"""

from __future__ import annotations

import ctypes

from services.agent.abi.layout import Address, Struct


class ServiceKey(Struct):
    """`struct service_key`, 20 bytes."""

    _fields_ = [
        ("address", Address),
        ("port", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("scope", ctypes.c_uint8),
    ]


class ServiceInfo(Struct):
    """`struct service_info`, 16 bytes."""

    _fields_ = [
        ("service_id", ctypes.c_uint32),
        ("backend_count", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("affinity_timeout", ctypes.c_uint32),
    ]


class BackendKey(Struct):
    """`struct backend_key`, 8 bytes: slots of a service run from 0 to its count - 1."""

    _fields_ = [("service_id", ctypes.c_uint32), ("slot", ctypes.c_uint32)]


class Backend(Struct):
    """`struct backend`, 20 bytes."""

    _fields_ = [
        ("address", Address),
        ("port", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
    ]


class Revnat(Struct):
    """`struct revnat`, 20 bytes: service id -> the address that the client knows."""

    _fields_ = [("address", Address), ("port", ctypes.c_uint16), ("pad", ctypes.c_uint16)]
