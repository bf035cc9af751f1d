"""Quotas: what the kernel counts, what is collected behind its back, and what one may therefore have."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np

from services.agent.abi.conntrack import CT_ENTRY, CtFlags
from services.agent.abi.ct_room import CT_USAGE, queue_places
from services.agent.abi.endpoints import MAX_ENDPOINTS
from services.agent.datapath.room import Records, Room

QUOTA = 10


class Kernel:
    """Maps `ct_usage` and `ct_limit`, and the kernel's question."""

    def __init__(self) -> None:
        self.usage = np.zeros(MAX_ENDPOINTS, CT_USAGE)
        self.limits = np.zeros(MAX_ENDPOINTS, np.uint32)
        self.writes = 0

    def chunks(self, count: int = 0) -> Iterator[tuple[bytes, bytes, int]]:
        yield b"", self.usage.tobytes(), MAX_ENDPOINTS

    def update_batch(self, entries: Mapping[bytes, bytes]) -> None:
        self.writes += len(entries)
        for key, value in entries.items():
            self.limits[struct.unpack("<I", key)[0]] = struct.unpack("<I", value)[0]

    def settle(self, endpoint: int, count: int) -> None:
        self.usage["settled"][endpoint] = (int(self.usage["settled"][endpoint]) + count) % 2**32

    def left(self, endpoint: int) -> int | None:
        """Connections that it may still open; None: any number. As `ct_check_quota` computes it."""
        limit = int(self.limits[endpoint])
        return (limit - int(self.usage["settled"][endpoint]) + 2**31) % 2**32 - 2**31 if limit else None


def entries(endpoint: int, settled: int, others: int = 0) -> Records:
    made = np.zeros(settled + others, CT_ENTRY)
    made["endpoint_id"] = endpoint
    made["flags"][:settled] = CtFlags.SETTLED
    return made


def swept(room: Room, kept: Records, removed: Records | None = None) -> None:
    room.begin()
    if removed is not None:
        room.removed(removed)
    room.kept(kept)
    room.end()


def test_an_endpoint_may_have_its_quota() -> None:
    kernel = Kernel()
    room = Room(kernel, kernel, QUOTA)
    kernel.settle(3, 7)
    swept(room, entries(3, 7, others=5))
    assert (kernel.left(3), kernel.left(4), kernel.left(0)) == (3, QUOTA, None)
    share = room.heaviest()[0]
    assert (share.endpoint, share.entries, share.settled) == (3, 12, 7)
    assert not room.at_quota()
    kernel.settle(3, 3)
    swept(room, entries(3, 10))
    assert kernel.left(3) == 0
    assert [share.endpoint for share in room.at_quota()] == [3]


def test_what_is_collected_gives_room_again() -> None:
    kernel = Kernel()
    room = Room(kernel, kernel, QUOTA)
    kernel.settle(3, 10)
    swept(room, entries(3, 10))
    swept(room, entries(3, 4), removed=entries(3, 6, others=2))
    assert kernel.left(3) == 6
    kernel.settle(3, 2)
    kernel.settle(3, -1)  # its end was seen: the kernel counts down itself
    assert kernel.left(3) == 5


def test_a_restart_counts_what_is_there() -> None:
    kernel = Kernel()
    kernel.settle(3, 50)  # of which an earlier agent collected 46
    room = Room(kernel, kernel, QUOTA)
    swept(room, entries(3, 4))
    assert kernel.left(3) == 6


def test_counts_that_went_wrong_come_right() -> None:
    kernel = Kernel()
    room = Room(kernel, kernel, QUOTA)
    swept(room, entries(3, 0))
    kernel.settle(3, 9)  # nine settled, and vanished unseen
    swept(room, entries(3, 0))
    assert kernel.left(3) == QUOTA


def test_the_kernels_count_may_wrap() -> None:
    kernel = Kernel()
    kernel.settle(3, -4)
    room = Room(kernel, kernel, QUOTA)
    swept(room, entries(3, 2))
    kernel.settle(3, 5)
    assert kernel.left(3) == 3


def test_the_node_has_no_quota_and_without_one_nobody_has() -> None:
    kernel = Kernel()
    swept(Room(kernel, kernel, QUOTA, exempt=frozenset({4095})), entries(4095, 20))
    assert (kernel.left(4095), kernel.left(1)) == (None, QUOTA)
    free = Kernel()
    swept(Room(free, free, 0), entries(1, 20))
    assert free.left(1) is None


def test_only_changes_are_written() -> None:
    kernel = Kernel()
    room = Room(kernel, kernel, QUOTA)
    swept(room, entries(3, 0))
    before = kernel.writes
    swept(room, entries(3, 0))
    assert kernel.writes == before


def test_the_queue_is_a_power_of_two_and_leaves_room() -> None:
    assert [queue_places(262_144, cpus) for cpus in (1, 2, 64)] == [32_768, 32_768, 2_048]
    assert queue_places(1024, 8) == 1024
