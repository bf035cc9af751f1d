"""What the datapath does with a DNS message, said readably: the definition that `bpf/dns.c` is compared with."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.agent.calc.names import matches

A, CNAME, AAAA, OPT, IXFR, AXFR, IN = 1, 5, 28, 41, 251, 252, 1
UDP_SIZE = 1232
QR, OPCODE, TC, RD, CD = 0x8000, 0x7800, 0x0200, 0x0100, 0x0010
MAX_ADDRESSES = 64


@dataclass(frozen=True, slots=True)
class Message:
    """The question of a message, and what is behind it."""

    id: int
    flags: int
    counts: tuple[int, int, int, int]
    name: str
    qtype: int
    qclass: int
    end: int
    """Where the question ends."""


@dataclass(slots=True)
class Answer:
    """What an answer teaches."""

    ttl: int = 0xFFFFFFFF
    addresses: list[bytes] = field(default_factory=list)


def read(raw: bytes) -> Message | None:
    """The question, or None: such a message is dropped."""
    if len(raw) < 12:
        return None
    number, flags, *counts = struct.unpack_from(">6H", raw)
    if counts[0] != 1:
        return None
    labels, at = [], 12
    while True:
        if at >= len(raw):
            return None
        length = raw[at]
        at += 1
        if not length:
            break
        label = raw[at : at + length].lower()
        if length > 63 or len(label) < length or b"." in label or b"\0" in label:
            return None
        labels.append(label.decode("latin-1"))
        at += length
    if at - 12 > 255 or at + 4 > len(raw):
        return None
    qtype, qclass = struct.unpack_from(">HH", raw, at)
    name = "".join(f"{label}." for label in labels) or "."
    return Message(number, flags, (counts[0], counts[1], counts[2], counts[3]), name, qtype, qclass, at + 4)


def is_question(message: Message) -> bool:
    """A query of one name, and nothing but that; a transfer may say which version the asker has."""
    authorities = 1 if message.qtype == IXFR else 0
    return not message.flags & (QR | OPCODE | TC) and not message.counts[1] and message.counts[2] <= authorities


def allowed(message: Message, patterns: Iterable[str]) -> bool:
    """Whether a rule set lets the name be asked for."""
    return any(matches(pattern, message.name) for pattern in patterns)


def refusal(raw: bytes, message: Message) -> bytes:
    """The kernel's own answer to a name that may not be asked for."""
    flags = QR | (message.flags & (OPCODE | RD | CD)) | 5
    asked = raw[12 : message.end]
    opt = raw[message.end : message.end + 11]
    if not message.counts[3] or len(opt) < 11 or opt[:3] != b"\0\0\x29":
        return struct.pack(">6H", message.id, flags, 1, 0, 0, 0) + asked
    told = b"\0" + struct.pack(">HHBBBBH", OPT, UDP_SIZE, 0, 0, opt[7] & 0x80, 0, 0)
    return struct.pack(">6H", message.id, flags, 1, 0, 0, 1) + asked + told


def teach(raw: bytes, message: Message) -> Answer | None:
    """The addresses in an answer and the lowest TTL; None: it cannot be read and is dropped."""
    found, at = Answer(), message.end
    for _ in range(message.counts[1]):
        while True:
            if at >= len(raw):
                return None
            length = raw[at]
            if length >= 0xC0:
                at += 2
                break
            if length > 63:
                return None
            at += 1 + length
            if not length:
                break
        if at + 10 > len(raw):
            return None
        kind, klass, ttl, size = struct.unpack_from(">HHIH", raw, at)
        at += 10
        if at + size > len(raw):
            return None
        data = raw[at : at + size]
        at += size
        if klass != IN or kind not in (A, AAAA, CNAME):
            continue
        found.ttl = min(found.ttl, ttl if ttl < 1 << 31 else 0)
        if kind == CNAME:
            continue
        if size != (4 if kind == A else 16):
            return None
        if len(found.addresses) < MAX_ADDRESSES:
            found.addresses.append(bytes(10) + b"\xff\xff" + data if kind == A else data)
    return found


def conversation(asked: Iterable[bytes], patterns: Iterable[str]) -> tuple[list[bytes], list[bytes]]:
    """Questions on one TCP connection: those that the server gets, and the refusals that may follow its answers: the
    first at least, and then the connection ends."""
    passed, refused, known = [], [], list(patterns)
    for raw in asked:
        message = read(raw)
        assert message is not None
        if allowed(message, known):
            if refused:
                break
            passed.append(raw)
        else:
            refused.append(refusal(raw, message))
    return passed, refused
