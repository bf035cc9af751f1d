"""Which backend a client of a Service gets, in readable Python: what `lb_select` of `bpf/lib/lb.h` must do."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.agent.abi.layout import be16
from services.agent.abi.lb import (
    MAGLEV_PIECE,
    Backend,
    BackendKey,
    BackendSlotKey,
    ClientKind,
    MaglevKey,
    ServiceFlags,
    ServiceInfo,
    ServiceKey,
)

Maps = Mapping[str, Mapping[bytes, bytes]]
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. `address` has 16 bytes: an address, or a network namespace's cookie."""

    address: bytes
    port: int = 0
    kind: ClientKind = ClientKind.ADDRESS


class ReferenceBalancer:
    """Reads the maps at every question; remembers clients of Services with affinity. Time (seconds) is an argument."""

    def __init__(self, maps: Maps, choose: Callable[[int], int] = lambda count: 0) -> None:
        self.maps, self._choose = maps, choose
        self.affinity: dict[tuple[bytes, int, int], tuple[bytes, int, float]] = {}

    def find(self, address: bytes, port: int, protocol: int, scope: int) -> tuple[ServiceKey, ServiceInfo] | None:
        """The Service behind an address and port."""
        key = ServiceKey(address=address, port=be16(port), protocol=protocol, scope=scope)
        raw = self.maps["services"].get(key.pack())
        return (key, ServiceInfo.unpack(raw)) if raw is not None else None

    def select(self, key: ServiceKey, info: ServiceInfo, client: Client, now: float = 0.0) -> tuple[bytes, int] | None:
        """(address, port) of the backend for a new connection; None: there is none."""
        if not info.backend_count:
            return None
        who = client.address, int(info.service_id), int(client.kind)
        if info.flags & ServiceFlags.AFFINITY:
            had = self._remembered(who, info, now)
            if had is not None:
                self.affinity[who] = (*had, now)
                return had
        slot = self._maglev(key, info, client) if info.flags & ServiceFlags.MAGLEV else self._choose(info.backend_count)
        raw = self.maps["backends"].get(BackendKey(service_id=info.service_id, slot=slot).pack())
        if raw is None:
            return None
        backend = Backend.unpack(raw)
        chosen = bytes(backend.address), be16(backend.port)
        if info.flags & ServiceFlags.AFFINITY:
            self.affinity[who] = (*chosen, now)
        return chosen

    def _remembered(self, who: tuple[bytes, int, int], info: ServiceInfo, now: float) -> tuple[bytes, int] | None:
        address, port, used = self.affinity.get(who, (b"", 0, 0.0))
        if not address or now > used + info.affinity_timeout:
            return None
        place = BackendSlotKey(address=address, service_id=info.service_id, port=be16(port)).pack()
        slot = self.maps["backend_slots"].get(place)
        return (address, port) if slot is not None and int.from_bytes(slot, "little") < info.backend_count else None

    def _maglev(self, key: ServiceKey, info: ServiceInfo, client: Client) -> int:
        entry = lb_hash(key, info, client) % (info.maglev_size or 1)
        piece = self.maps["maglev"].get(MaglevKey(service_id=info.service_id, piece=entry // MAGLEV_PIECE).pack())
        if piece is None:
            return self._choose(info.backend_count)
        at = 2 * (entry % MAGLEV_PIECE)
        return int.from_bytes(piece[at : at + 2], "little")


def lb_hash(key: ServiceKey, info: ServiceInfo, client: Client) -> int:
    """murmur3 over client, frontend and ports, all as they are in memory; with affinity without the client's port."""
    port = 0 if info.flags & ServiceFlags.AFFINITY else be16(client.port)
    words = struct.unpack("<4I", client.address) + struct.unpack("<4I", bytes(key.address))
    value = int(info.maglev_seed)
    for word in (*words, port, int(key.port) | int(key.protocol) << 16):
        mixed = word * 0xCC9E2D51 & _MASK
        mixed = (mixed << 15 | mixed >> 17) & _MASK
        value ^= mixed * 0x1B873593 & _MASK
        value = (value << 13 | value >> 19) & _MASK
        value = value * 5 + 0xE6546B64 & _MASK
    value = (value ^ value >> 16) * 0x85EBCA6B & _MASK
    value = (value ^ value >> 13) * 0xC2B2AE35 & _MASK
    return value ^ value >> 16
