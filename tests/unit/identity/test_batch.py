"""What may travel together does, what may not does not, and everybody hears their own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.common.errors import Internal, Unavailable
from services.identity.batch import MOST, Batcher, Transaction
from services.identity.keys import KeyRange
from services.identity.store import Absent, Compare, Delete, Holds, LeaseGone, Outcome, Put


class Etcd:
    """Answers when told to; notes what came together."""

    def __init__(self) -> None:
        self.requests: list[list[bytes]] = []
        self.open = asyncio.Event()
        self.errors: dict[bytes, Exception] = {}

    async def send(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        names = [transaction.then[0].key for transaction in transactions]
        self.requests.append(names)
        await self.open.wait()
        for name in names:
            if name in self.errors:
                raise self.errors[name]
        return [Outcome(True, int(name[1:])) for name in names]


def put(key: bytes, *compares: Compare, otherwise: Sequence[bytes] = ()) -> Transaction:
    return Transaction(compares or (Absent(key),), [Put(key, b"")], otherwise)


async def start(batcher: Batcher, *transactions: Transaction) -> list[asyncio.Task[Outcome]]:
    tasks = [asyncio.create_task(batcher.transact(transaction)) for transaction in transactions]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_the_first_goes_at_once_and_the_rest_together() -> None:
    etcd = Etcd()
    batcher = Batcher(etcd.send)
    first = await start(batcher, put(b"k0"))
    rest = await start(batcher, *(put(b"k%d" % index) for index in range(1, 5)))
    etcd.open.set()
    outcomes = await asyncio.gather(*first, *rest)
    assert etcd.requests == [[b"k0"], [b"k1", b"k2", b"k3", b"k4"]]
    assert [outcome.revision for outcome in outcomes] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "other",
    [
        Transaction((Absent(b"k9"),), [Put(b"k2", b"")]),
        Transaction((Absent(b"k2"),), [Put(b"k1", b"")]),
        Transaction((Holds(b"k1", b""),), [Put(b"k2", b"")]),
        Transaction((), [Delete(b"k2")], [b"k1"]),
        Transaction((Absent(KeyRange(b"x", b"y")),), [Delete(b"k2")]),
    ],
    ids=["writes what the other reads", "writes the same", "decides by it", "returns it", "compares a range"],
)
async def test_transactions_that_touch_go_apart(other: Transaction) -> None:
    etcd = Etcd()
    batcher = Batcher(etcd.send)
    one = Transaction((Absent(b"k1"), Holds(b"k2", b"x")), [Put(b"k1", b"")])
    tasks = await start(batcher, put(b"k0"), one, other, put(b"k3"))
    etcd.open.set()
    await asyncio.gather(*tasks)
    assert etcd.requests == [[b"k0", b"k1", b"k3"], [other.then[0].key]]


async def test_requests_are_bounded() -> None:
    etcd = Etcd()
    batcher = Batcher(etcd.send)
    tasks = await start(batcher, *(put(b"k%d" % index) for index in range(3 * MOST)))
    etcd.open.set()
    await asyncio.gather(*tasks)
    assert max(len(request) for request in etcd.requests) == MOST


async def test_one_lost_lease_fails_its_own_transaction_only() -> None:
    etcd = Etcd()
    batcher = Batcher(etcd.send)
    etcd.errors[b"k2"] = LeaseGone("gone")
    tasks = await start(batcher, put(b"k0"))
    tasks += await start(batcher, put(b"k1"), put(b"k2"), put(b"k3"))
    etcd.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Outcome, Outcome, LeaseGone, Outcome]


async def test_when_etcd_is_away_nobody_waits_for_a_time_out_of_their_own() -> None:
    etcd = Etcd()
    batcher = Batcher(etcd.send)
    etcd.errors[b"k0"] = Unavailable("away")
    tasks = await start(batcher, put(b"k0"))
    tasks += await start(batcher, *(put(b"k%d" % index) for index in range(1, 3 * MOST)))
    etcd.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    assert len(etcd.requests) == 1
    assert (await batcher.transact(put(b"k7"))).succeeded


async def test_a_refused_request_does_not_fail_those_who_wait() -> None:
    etcd = Etcd()
    batcher = Batcher(etcd.send)
    etcd.errors[b"k0"] = Internal("refused")
    tasks = await start(batcher, put(b"k0"))
    tasks += await start(batcher, put(b"k1"))
    etcd.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Internal, Outcome]


async def test_who_gave_up_is_not_sent_and_closing_ends_the_rest() -> None:
    etcd = Etcd()
    batcher = Batcher(etcd.send)
    tasks = await start(batcher, put(b"k0"))
    gone, kept = await start(batcher, put(b"k1"), put(b"k2"))
    gone.cancel()
    await asyncio.sleep(0)
    await batcher.close()
    results = await asyncio.gather(*tasks, gone, kept, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert etcd.requests == [[b"k0"]]
