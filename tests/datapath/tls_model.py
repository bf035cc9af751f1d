"""Whom a TLS client names in its first message, said readably: what `bpf/tls.c` is compared with."""

from __future__ import annotations

import re

WINDOW = 2048
MORE, NOBODY, MALFORMED = "more", "nobody", "malformed"


class _More(Exception):
    pass


class _Malformed(Exception):
    pass


def server_name(stream: bytes) -> str:
    """The canonical name, or one of MORE, NOBODY, MALFORMED, from the beginning of a stream."""
    raw = stream[:WINDOW]
    try:
        found = _read(raw)
    except _Malformed:
        return MALFORMED
    except _More:
        return MALFORMED if len(raw) == WINDOW else MORE
    return found


def _number(raw: bytes, at: int, size: int) -> int:
    if at + size > len(raw):
        raise _More
    return int.from_bytes(raw[at : at + size], "big")


def _expect(condition: bool) -> None:
    if not condition:
        raise _Malformed


def _read(raw: bytes) -> str:
    for at, value in ((0, 22), (1, 3), (5, 1)):
        _expect(len(raw) <= at or raw[at] == value)
    if len(raw) < 44:
        raise _More
    record, message = _number(raw, 3, 2), _number(raw, 6, 3)
    _expect(record <= 16384 and message + 4 <= record)
    at = 44 + raw[43]
    at += 2 + _number(raw, at, 2)
    _expect(at < WINDOW)
    at += 1 + _number(raw, at, 1)
    if at + 2 > 9 + message:
        return NOBODY
    end = at + 2 + _number(raw, at, 2)
    _expect(end == 9 + message)
    at += 2
    for _ in range(64):
        if at == end:
            return NOBODY
        _expect(at + 4 <= end and at + 4 <= WINDOW)
        kind, length = _number(raw, at, 2), _number(raw, at + 2, 2)
        _expect(at + 4 + length <= end)
        if kind == 0:
            return _name(raw, at + 4, length)
        at += 4 + length
    raise _Malformed


def _name(raw: bytes, at: int, length: int) -> str:
    _expect(at + length <= WINDOW)
    if at + length > len(raw):
        raise _More
    data = raw[at : at + length]
    _expect(length >= 6 and data[:2] == (length - 2).to_bytes(2, "big") and data[2] == 0)
    _expect(data[3:5] == (length - 5).to_bytes(2, "big") and length - 5 <= 253)
    name = data[5:].decode("latin-1")
    name = "".join(c.lower() if c.isascii() else c for c in name)
    name = name if name.endswith(".") else name + "."
    _expect(not re.search(r"\0|^\.|\.\.", name))
    return name
