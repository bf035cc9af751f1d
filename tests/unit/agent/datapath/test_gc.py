"""Conntrack collection: what is over goes and says good-bye, what lives stays."""

from __future__ import annotations

from typing import Any

import pytest

from services.agent.abi.conntrack import CtEntry, CtFlags, CtKey, CtScope
from services.agent.abi.events import EventType
from services.agent.abi.layout import be16
from services.agent.datapath.gc import ConntrackCollector
from services.model.verdict import Direction

A, B = bytes(10) + b"\xff\xff\x0a\x00\x00\x01", bytes(10) + b"\xff\xff\x0a\x00\x00\x02"
NOW = 1_000_000_000_000


class FakeConntrack:
    """A map with `chunks` and `delete_packed`; what is in `vanish` is gone by then, as when the kernel was quicker."""

    max_entries = 100

    def __init__(self, entries: dict[CtKey, CtEntry]) -> None:
        self.entries = {key.pack(): value.pack() for key, value in entries.items()}
        self.vanish: set[bytes] = set()

    def chunks(self, count: int = 2) -> Any:
        items = list(self.entries.items())
        for start in range(0, len(items), 2):
            part = items[start : start + 2]
            yield b"".join(k for k, _ in part), b"".join(v for _, v in part), len(part)

    def delete_packed(self, keys: bytes) -> int:
        wanted = [keys[i : i + 40] for i in range(0, len(keys), 40)]
        return sum(self.entries.pop(key, None) is not None and key not in self.vanish for key in wanted)


def key(port: int, scope: int = CtScope.CONNECTION, protocol: int = 6) -> CtKey:
    return CtKey(local=A, remote=B, local_port=be16(port), remote_port=be16(80), protocol=protocol, scope=scope)


def entry(expires: int, **fields: Any) -> CtEntry:
    given = {
        "created_ns": NOW - 5_000_000,
        "direction": Direction.EGRESS,
        "self_identity": 11,
        "peer_identity": 22,
        "rule_id": 7,
        "endpoint_id": 3,
        **fields,
    }
    return CtEntry(expires_ns=expires, **given)


async def sweep(conntrack: FakeConntrack, **options: Any) -> tuple[Any, list[Any]]:
    records: list[Any] = []
    collector = ConntrackCollector(conntrack, records.extend, **options)
    return await collector.sweep(NOW), records


async def test_expired_entries_leave_a_close_record() -> None:
    conntrack = FakeConntrack({key(1): entry(NOW - 1), key(2): entry(NOW + 1), key(3): entry(NOW - 1)})
    result, records = await sweep(conntrack)
    assert (result.entries, result.removed, result.closed) == (3, 2, 2)
    assert list(conntrack.entries) == [key(2).pack()]
    record = records[0]
    assert (int(record["type"]), int(record["endpoint_id"]), int(record["rule_id"])) == (EventType.CLOSE, 3, 7)
    assert (record["saddr"].tobytes(), record["daddr"].tobytes()) == (A, B)
    assert (int(record["sport"]), int(record["dport"])) == (1, 80)
    assert (int(record["src_identity"]), int(record["dst_identity"])) == (11, 22)
    assert int(record["duration_us"]) == 5000


async def test_an_incoming_connection_is_told_from_the_clients_side() -> None:
    conntrack = FakeConntrack({key(80): entry(NOW - 1, direction=Direction.INGRESS)})
    _, records = await sweep(conntrack)
    assert records[0]["saddr"].tobytes() == B
    assert (int(records[0]["src_identity"]), int(records[0]["dst_identity"])) == (22, 11)
    assert (int(records[0]["sport"]), int(records[0]["dport"])) == (80, 80)


async def test_icmp_says_its_type() -> None:
    conntrack = FakeConntrack({key(4711, protocol=1): entry(NOW - 1, tcp_flags=8)})
    _, records = await sweep(conntrack)
    assert (int(records[0]["sport"]), int(records[0]["dport"]), int(records[0]["tcp_flags"])) == (8, 0, 0)


async def test_closed_and_service_entries_go_silently() -> None:
    conntrack = FakeConntrack({key(1): entry(NOW - 1, flags=CtFlags.CLOSED), key(2, CtScope.SERVICE): entry(NOW - 1)})
    result, records = await sweep(conntrack)
    assert (result.removed, records, conntrack.entries) == (2, [], {})


async def test_what_the_kernel_removed_first_is_not_counted_as_collected() -> None:
    conntrack = FakeConntrack({key(1): entry(NOW - 1), key(2): entry(NOW - 1)})
    conntrack.vanish.add(key(1).pack())
    result, _ = await sweep(conntrack)
    assert (result.entries, result.removed) == (2, 1)


async def test_what_a_pod_leaves_behind_goes_with_it() -> None:
    conntrack = FakeConntrack({key(n): entry(NOW + 1, endpoint_id=n) for n in (3, 4, 4095)})
    pods = {3, 4}
    records: list[Any] = []
    collector = ConntrackCollector(conntrack, records.extend, endpoints=lambda: frozenset(pods))
    assert (await collector.sweep(NOW)).removed == 0, "ids that never were a pod's are left alone"
    pods.remove(4)
    assert (await collector.sweep(NOW)).removed == 1
    assert [int(record["endpoint_id"]) for record in records] == [4]


@pytest.mark.parametrize(("entries", "pause"), [(10, 5.0), (60, 2.0), (95, 1.0)])
async def test_the_fuller_the_more_often(entries: int, pause: float) -> None:
    conntrack = FakeConntrack({key(n): entry(NOW + 1) for n in range(entries)})
    collector = ConntrackCollector(conntrack, lambda records: None)
    await collector.sweep(NOW)
    assert (collector.fill, collector.pause_s) == (entries / 100, pause)


async def test_choices_of_vanished_backends_are_forgotten() -> None:
    gone = entry(NOW + 1, nat_address=B, nat_port=be16(80))
    kept = entry(NOW + 1, nat_address=B, nat_port=be16(81))
    conntrack = FakeConntrack({key(1, CtScope.SERVICE): gone, key(2, CtScope.SERVICE): kept})
    await sweep(conntrack, live_backends=lambda: frozenset({B + b"\0\x51"}))
    assert list(conntrack.entries) == [key(2, CtScope.SERVICE).pack()]
