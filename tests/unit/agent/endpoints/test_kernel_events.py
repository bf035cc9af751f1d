"""Raw messages of the kernel: the few bytes that say what each is about."""

from __future__ import annotations

import struct

import pytest

from services.agent.endpoints.kernel_events import NEW_ADDRESS, NEW_LINK, NEW_ROUTE, KernelEvent, parse_events


def message(kind: int, body: bytes) -> bytes:
    body += b"rest"
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


LINK = message(NEW_LINK, struct.pack("=BxHiII", 0, 1, 7, 0x1043, 0))
ADDRESS = message(NEW_ADDRESS, struct.pack("=BBBBI", 10, 64, 0, 253, 9) + b"x")
ROUTE = message(NEW_ROUTE, struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 4, 0, 1, 0))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (LINK, [KernelEvent(NEW_LINK, index=7)]),
        (ADDRESS + ROUTE, [KernelEvent(NEW_ADDRESS, index=9, scope=253), KernelEvent(NEW_ROUTE, prefix_length=24)]),
        (message(3, b""), []),
        (LINK + ROUTE[:-6], [KernelEvent(NEW_LINK, index=7)]),
        (struct.pack("=IHHII", 0, NEW_LINK, 0, 0, 0) + LINK, []),
        (LINK[:20], []),
    ],
)
def test_events(data: bytes, expected: list[KernelEvent]) -> None:
    assert parse_events(data) == expected
