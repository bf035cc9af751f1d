"""Addresses that the kernel has learned for DNS names, read from its maps: the only memory, over restarts too."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.agent.abi.names import CONCERNS, FqdnIp, FqdnName
from services.model.addresses import IPAddress, from_bytes


class ReadableMap(Protocol):
    """What is needed of a pinned map."""

    def lookup(self, key: bytes) -> bytes | None: ...
    def items(self) -> Iterable[tuple[bytes, bytes]]: ...


@dataclass(frozen=True, slots=True)
class Learned:
    """A name of an address. `left`: seconds until it ends, grace included; negative: it is over."""

    name: str
    address: IPAddress
    ttl: int
    left: float
    identity: int
    """Of the toFQDNs selectors that match the name; 0 = none."""


class LearnedNames:
    """What `fqdn_ips` and `fqdn_names` say now."""

    def __init__(self, maps: Mapping[str, ReadableMap]) -> None:
        self._ips, self._names = maps["fqdn_ips"], maps["fqdn_names"]

    def names_of(self, address: bytes) -> tuple[str, ...]:
        """The names of an address (16 bytes), sorted, those that are over included: connections may outlive them."""
        raw = self._ips.lookup(address)
        if raw is None:
            return ()
        found = (self._name(slot.name) for slot in FqdnIp.unpack(raw).slots if slot.name)
        return tuple(sorted(printable(entry).rstrip(".") for entry in found if entry is not None))

    def open_names(self, address: bytes, now_ns: int | None = None) -> tuple[str, ...]:
        """Those of them that still open new connections, with final dots, as selectors are compared with them."""
        raw = self._ips.lookup(address)
        now = time.monotonic_ns() if now_ns is None else now_ns
        slots = FqdnIp.unpack(raw).slots if raw is not None else ()
        live = (self._name(slot.name) for slot in slots if slot.name and slot.expires_ns & ~CONCERNS >= now)
        return tuple(sorted(printable(entry) for entry in live if entry is not None))

    def all(self, now_ns: int | None = None) -> list[Learned]:
        """Everything, in the order of names and addresses."""
        now = time.monotonic_ns() if now_ns is None else now_ns
        names = {int.from_bytes(key, "little"): FqdnName.unpack(raw) for key, raw in self._names.items()}
        found = [
            Learned(
                printable(names[slot.name]),
                from_bytes(key),
                names[slot.name].ttl,
                ((slot.expires_ns & ~CONCERNS) - now) / 1e9,
                names[slot.name].identity,
            )
            for key, raw in self._ips.items()
            for slot in FqdnIp.unpack(raw).slots
            if slot.name in names
        ]
        return sorted(found, key=lambda each: (each.name, each.address.version, int(each.address)))

    def _name(self, number: int) -> FqdnName | None:
        raw = self._names.lookup(number.to_bytes(8, "little"))
        return None if raw is None else FqdnName.unpack(raw)


def printable(entry: FqdnName) -> str:
    """A name as text that a terminal can show: names come from the network."""
    raw = bytes(entry.name)[: entry.length]
    return "".join(chr(byte) if 0x20 < byte < 0x7F else f"%{byte:02X}" for byte in raw)
