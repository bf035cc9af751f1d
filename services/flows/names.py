"""Texts that are made from a row's numbers: URLs and uuids, for rendering and for filters alike."""

from __future__ import annotations

import hashlib
import uuid as uuids

from services.flows.columns import Columns
from services.flows.dictionary import Dictionaries
from services.flows.entries import HttpRequest, Party
from services.model.addresses import from_bytes

TIME_MASK = (1 << 60) - 1
"""The bits of a row's time that its uuid holds: unique for 36 years."""


UUID_COLUMNS = ("time_ns", "node", "source", "destination", "source_port", "destination_port", "kind", "direction")
"""What a row's uuid is made of."""


def request_url(request: HttpRequest, server: Party, port: int) -> str:
    """`http://<address>[:port]<path>`: the datapath sees the path, not which name the client used."""
    address = from_bytes(server.address)
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"http://{host}{'' if port == 80 else f':{port}'}{request.path}"


def trace_id(high: int, low: int) -> str:
    """A W3C trace id from its halves."""
    return f"{high:016x}{low:016x}"


def row_uuids(columns: Columns, dictionaries: Dictionaries) -> list[str]:
    """One uuid per row (RFC 9562, version 8): its time and a hash of what happened where.

    The same row has the same uuid on the node and on the relay, and none is stored.
    """
    found = []
    for time, node, source, destination, *rest in zip(*(columns[name].tolist() for name in UUID_COLUMNS), strict=True):
        sides = [dictionaries.parties[number] for number in (source, destination)]
        where = dictionaries.nodes[node]
        text = f"{where.absolute if where else ''}|{'|'.join(p.address.hex() if p else '' for p in sides)}|{rest}"
        low = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        time &= TIME_MASK  # noqa: PLW2901
        value = (time >> 12) << 80 | 0x8 << 76 | (time & 0xFFF) << 64 | 0b10 << 62 | low >> 2
        found.append(str(uuids.UUID(int=value)))
    return found


def time_of(text: str) -> int | None:
    """The time bits in a uuid that `row_uuids` made; None for other texts."""
    try:
        value = uuids.UUID(text).int
    except ValueError:
        return None
    return (value >> 80) << 12 | (value >> 64) & 0xFFF
