"""DSR in Geneve in Python: what the compiled programs must put on the wire, and what they must take from it.

Follows bpf/lib/dsr_geneve.h and dsr_geneve_in.h; RFC 8926 for the header and its options, RFC 768 and 6935 for UDP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from services.model.verdict import DropReason

ETHERNET = 14
DSR_CLASS, DSR_TYPE, CRITICAL = 0x014B, 0x81, 0x80
OPTIONS_READ = 8
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_BASE = {4: 20, 6: 40}


@dataclass(frozen=True, slots=True)
class Around:
    """What a node puts around a client's packet. Addresses have 4 or 16 bytes."""

    source: bytes
    """This node's."""
    destination: bytes
    """The backend's node."""
    port: int
    identity: int
    """Of the client: the network identifier."""
    service: bytes
    service_port: int


def checksum(header: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def flow_hash(packet: bytes) -> int:
    """32 bits of a bare TCP, UDP or SCTP packet without options, as a little-endian processor mixes them."""
    version = packet[0] >> 4
    ends, l4 = (packet[12:20], packet[20:24]) if version == 4 else (packet[8:40], packet[40:44])
    words: tuple[int, ...] = struct.unpack(f"<{len(ends) // 4}I", ends)
    sport, dport = (int.from_bytes(port, "little") for port in (l4[:2], l4[2:]))
    mixed = 0
    for word in words:  # IPv4's mapped prefix is there twice, so that it cancels out
        mixed ^= word
    return ((mixed ^ (sport << 16 | dport) ^ packet[9 if version == 4 else 6]) * 0x9E3779B1) & 0xFFFFFFFF


def wrap(frame: bytes, around: Around) -> bytes:
    """The frame as it leaves for the backend's node; its link addresses stay."""
    packet = frame[ETHERNET:]
    mixed = flow_hash(packet)
    value = around.service + struct.pack(">HH", around.service_port, 0)
    option = struct.pack(">HBB", DSR_CLASS, DSR_TYPE, len(value) // 4) + value
    geneve = struct.pack(">BBHI", len(option) // 4, 0x40, 0x6558, around.identity << 8) + option
    inside = geneve + frame
    udp = struct.pack(">HHHH", 0xC000 | mixed >> 18, around.port, 8 + len(inside), 0) + inside
    if len(around.source) == 4:
        fields = (0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0, around.source, around.destination)
        header = struct.pack(">BBHHHBBH4s4s", *fields)
        header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    else:
        fields6 = (0x60000000 | mixed >> 12, len(udp), 17, 64, around.source, around.destination)
        header = struct.pack(">IHBB16s16s", *fields6)
    family = 4 if len(around.source) == 4 else 6
    return frame[:12] + _ETHERTYPES[family].to_bytes(2, "big") + header + udp


def unwrap(frame: bytes) -> tuple[bytes, bytes, int] | DropReason:
    """The inner packet with the outer link addresses, and what the client addressed (4 or 16 bytes, port); of a packet
    from a node to the DSR port, without options of its own. Whoever is inside is not looked at."""
    family = frame[ETHERNET] >> 4
    length = int.from_bytes(frame[16:18], "big") if family == 4 else 40 + int.from_bytes(frame[18:20], "big")
    udp, end = ETHERNET + _BASE[family], ETHERNET + length
    if frame[udp + 4 : udp + 6] != (end - udp).to_bytes(2, "big") or len(frame) < udp + 16:
        return DropReason.INVALID_PACKET_DROPPED
    version_words, flags, protocol = struct.unpack_from(">BBH", frame, udp + 8)
    options = udp + 16
    inner = options + (version_words & 0x3F) * 4
    if version_words >> 6 or flags & 0x80 or protocol != 0x6558 or inner + ETHERNET + 20 > end:
        return DropReason.INVALID_PACKET_DROPPED
    found = _options(frame[options:inner])
    if found is None:
        return DropReason.INVALID_GENEVE_OPTION
    ethertype = _ETHERTYPES[4 if len(found[0]) == 4 else 6].to_bytes(2, "big")
    if frame[inner + 12 : inner + 14] != ethertype:
        return DropReason.UNSUPPORTED_L3_PROTOCOL
    return frame[:12] + ethertype + frame[inner + ETHERNET :], *found


def _options(raw: bytes) -> tuple[bytes, int] | None:
    """The one option of DSR's among them, or None."""
    found, at, read = None, 0, 0
    while at < len(raw) and read < OPTIONS_READ:
        kind, type_, words = struct.unpack_from(">HBB", raw, at)
        words &= 31
        value = raw[at + 4 : at + 4 + words * 4]
        if (kind, type_) == (DSR_CLASS, DSR_TYPE):
            if found or words not in (2, 5):
                return None
            address, port = value[:-4], value[-4:-2]
            found = (address, int.from_bytes(port, "big"))
        elif type_ & CRITICAL:
            return None
        at, read = at + 4 + words * 4, read + 1
    return found if at == len(raw) else None
