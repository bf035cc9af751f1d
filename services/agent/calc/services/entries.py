"""Entries of the maps of `bpf/lib/lb.h` as bytes: `abi.lb`'s structs without a ctypes object for each, because tens of
thousands are written at a start (a test holds the two together)."""

from __future__ import annotations

import struct

from services.agent.abi.lb import BackendFlags, Scope
from services.model.addresses import IPAddress, IPNetwork, from_bytes, prefix_to_key, to_bytes

_TAIL = struct.Struct(">HBB")
_INFO = struct.Struct("<6I")
_PAIR = struct.Struct("<II")
_SLOT_TAIL = struct.Struct("<I")
_U32 = struct.Struct("<I")
PLACE = 18
"""Bytes of an address and a port: what frontends' keys and backends' values begin with."""


def service_key(address: IPAddress, port: int, protocol: int, scope: int = Scope.INTERNAL) -> bytes:
    """The key of a frontend."""
    return to_bytes(address) + _TAIL.pack(port, protocol, scope)


def port_of(key: bytes) -> int:
    """The port of a frontend's key; 0: every other port of the address."""
    return int.from_bytes(key[16:PLACE], "big")


def place_of(raw: bytes) -> tuple[IPAddress, int]:
    """(address, port) that a key or value begins with."""
    return from_bytes(raw[:16]), int.from_bytes(raw[16:PLACE], "big")


def read_info(value: bytes) -> tuple[int, int]:
    """(service id, flags) of a frontend's value."""
    number, _, flags, _, _, _ = _INFO.unpack(value)
    return number, flags


def service_info(
    service_id: int,
    backends: int,
    flags: int = 0,
    *,
    affinity_seconds: int = 0,
    maglev_size: int = 0,
    maglev_seed: int = 0,
) -> bytes:
    """The value of a frontend."""
    return _INFO.pack(service_id, backends, flags, affinity_seconds, maglev_size, maglev_seed & 0xFFFFFFFF)


def backend_key(service_id: int, slot: int) -> bytes:
    """The key of a backend's slot."""
    return _PAIR.pack(service_id, slot)


def backend_value(address: bytes, port: int, protocol: int, *, local: bool = False) -> bytes:
    """The value of a backend's slot. `address`: 16 bytes."""
    return address + _TAIL.pack(port, protocol, BackendFlags.LOCAL if local else 0)


def backend_slot_key(service_id: int, place: bytes) -> bytes:
    """Where a backend is: the key. `place`: its address and port."""
    return place[:16] + _SLOT_TAIL.pack(service_id) + place[16:] + bytes(2)


def maglev_key(service_id: int, piece: int) -> bytes:
    """The key of a piece of a look-up table."""
    return _PAIR.pack(service_id, piece)


def source_range_key(service_id: int, network: IPNetwork) -> bytes:
    """The key of a range of clients."""
    length, raw = prefix_to_key(network)
    return _PAIR.pack(32 + length, service_id) + raw


def revnat_value(address: IPAddress, port: int) -> bytes:
    """The address that clients of a service know."""
    return to_bytes(address) + port.to_bytes(2, "big") + bytes(2)


def u32(number: int) -> bytes:
    """A bare 32-bit key or value."""
    return _U32.pack(number)
