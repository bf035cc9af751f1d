"""Services (`bpf/lib/lb.h`): frontend -> backends, and what choosing one of them needs.

An update writes backends first and the frontend's count last, so that a packet never meets a slot that is not there.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

from services.agent.abi.layout import Address, Struct

MAGLEV_PIECE = 1024
"""Entries of one piece of a look-up table."""


class Scope(IntEnum):
    """`enum service_scope`: who asks."""

    INTERNAL = 0
    EXTERNAL = 1


class ServiceFlags(IntFlag):
    """`enum service_flags`."""

    REFUSE = 1
    LOCAL = 2
    AFFINITY = 4
    MAGLEV = 8
    SOURCE_RANGES = 16
    SOURCE_DENY = 32
    DSR = 64
    WILDCARD = 128
    NODE_PORT = 256
    HOST_PORT = 512


class BackendFlags(IntFlag):
    """`enum backend_flags`."""

    LOCAL = 1


class ClientKind(IntEnum):
    """`enum lb_client_kind`: how affinity knows a client."""

    ADDRESS = 0
    NETNS = 1


class ServiceKey(Struct):
    """`struct service_key`, 20 bytes. Port 0 of protocol 0: every other port of the address."""

    _fields_ = [
        ("address", Address),
        ("port", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("scope", ctypes.c_uint8),
    ]


class ServiceInfo(Struct):
    """`struct service_info`, 24 bytes. Frontends with the same backends share a service id."""

    _fields_ = [
        ("service_id", ctypes.c_uint32),
        ("backend_count", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("affinity_timeout", ctypes.c_uint32),
        ("maglev_size", ctypes.c_uint32),
        ("maglev_seed", ctypes.c_uint32),
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


class BackendSlotKey(Struct):
    """`struct backend_slot_key`, 24 bytes: where a backend is now; only for services with affinity."""

    _fields_ = [
        ("address", Address),
        ("service_id", ctypes.c_uint32),
        ("port", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
    ]


class MaglevKey(Struct):
    """`struct maglev_key`, 8 bytes: piece n of a look-up table has entries n * 1024 and following."""

    _fields_ = [("service_id", ctypes.c_uint32), ("piece", ctypes.c_uint32)]


class AffinityKey(Struct):
    """`struct affinity_key`, 24 bytes."""

    _fields_ = [
        ("client", Address),
        ("service_id", ctypes.c_uint32),
        ("kind", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    ]


class AffinityEntry(Struct):
    """`struct affinity_entry`, 32 bytes: the backend of a client, and when it last asked."""

    _fields_ = [
        ("address", Address),
        ("port", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("pad2", ctypes.c_uint32),
        ("used_ns", ctypes.c_uint64),
    ]


class SourceRangeKey(Struct):
    """`struct source_range_key`, 24 bytes; the prefix covers the 32 bits of the service id, too."""

    _fields_ = [("prefixlen", ctypes.c_uint32), ("service_id", ctypes.c_uint32), ("address", Address)]


class LbClient(Struct):
    """`struct lb_client`, 32 bytes: who asks `lb_select`."""

    _fields_ = [
        ("address", Address),
        ("port", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("pad2", ctypes.c_uint32),
        ("now_ns", ctypes.c_uint64),
    ]


class Revnat(Struct):
    """`struct revnat`, 20 bytes: service id -> the address by which it is best known."""

    _fields_ = [("address", Address), ("port", ctypes.c_uint16), ("pad", ctypes.c_uint16)]
