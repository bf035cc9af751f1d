"""Allocation: one number per label set, one label set per number, decided by a single transaction.

The number is a guess from memory; the transaction says whether it was right. A wrong guess costs one round more,
never a wrong answer: the loser of a race is told by the store who won, and takes that.
"""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import dataclass

from services.common.errors import Exhausted, Internal, Unavailable
from services.identity.keys import Keys
from services.identity.leases import NodeLeases, View
from services.identity.store import Absent, Delete, Exists, Holds, LeaseGone, Put, Store, Unchanged

ATTEMPTS = 24
PROBES = 64
QUARANTINE = 4_096


class Numbers:
    """Chooses free numbers in first..last at random, so that replicas rarely choose alike.

    A number that was given back is avoided for a while: a node that has not heard yet would take the newcomer for
    the one that is gone. `generator` makes tests repeatable.
    """

    def __init__(self, first: int, last: int, generator: random.Random) -> None:
        self._first, self._last = first, last
        self._random = generator
        self._resting: dict[int, None] = {}
        self._pending: set[int] = set()

    @property
    def undecided(self) -> bool:
        """Whether numbers are being given out right now, some of which may come back."""
        return bool(self._pending)

    def rest(self, number: int) -> None:
        """The number was given back just now."""
        self._resting[number] = None
        if len(self._resting) > QUARANTINE:
            del self._resting[next(iter(self._resting))]

    def take(self, taken: Container[int]) -> int:
        """A number that is not in `taken` nor being given out; `settle` it. Raises `Exhausted`."""
        for _ in range(PROBES):
            number: int = self._random.randint(self._first, self._last)
            if number not in taken and number not in self._pending and number not in self._resting:
                self._pending.add(number)
                return number
        start = self._random.randint(self._first, self._last)
        nothing: dict[int, None] = {}
        for avoided in (self._resting, nothing):
            for number in (*range(start, self._last + 1), *range(self._first, start)):
                if number not in taken and number not in self._pending and number not in avoided:
                    self._pending.add(number)
                    return number
        raise Exhausted(
            f"labels: no identity is free in {self._first}..{self._last}; delete workloads with labels of their own, "
            "or filter out labels that differ from pod to pod"
        )

    def settle(self, number: int) -> None:
        """The number is given out, or was taken by somebody else: memory will know soon."""
        self._pending.discard(number)


@dataclass(frozen=True, slots=True)
class Allocation:
    """An identity that the node claimed at `revision`. `created`: nobody had it before."""

    id: int
    created: bool
    revision: int


class Allocator:
    """Gives out and takes back identities on behalf of nodes."""

    def __init__(self, store: Store, keys: Keys, view: View, leases: NodeLeases, numbers: Numbers) -> None:
        self._store, self._keys, self._view = store, keys, view
        self._leases, self._numbers = leases, numbers

    async def allocate(self, canonical: str, node: str) -> Allocation:
        """The identity of these labels with a reference by `node`; the same call again has the same result.

        Raises `Exhausted`, `Unavailable`.
        """
        known = self._view.state.by_labels.get(canonical)
        for _ in range(ATTEMPTS):
            lease = await self._leases.of(node)
            try:
                result = (
                    await self._create(canonical, node, lease)
                    if known is None
                    else await self._adopt(canonical, known, node, lease)
                )
            except LeaseGone:
                self._leases.forget(node, lease)
                continue
            if isinstance(result, Allocation):
                return result
            known = result
        raise Unavailable(f"labels {canonical[:80]!r}: others change this identity all the time; try again")

    async def release(self, number: int, node: str, claim: int = 0) -> int:
        """Drop the node's reference, with `claim` only if it was claimed at that revision and not since.

        Returns the revision to wait for, 0 where there was no such reference.
        """
        key = self._keys.reference(number, node)
        outcome = await self._store.transact([Unchanged(key, claim) if claim else Exists(key)], [Delete(key)])
        return outcome.revision if outcome.succeeded else 0

    async def _create(self, canonical: str, node: str, lease: int) -> Allocation | int | None:
        """Try a new number; else the number that the labels have, None where only the number was taken."""
        labels_key = self._keys.labels(canonical)
        try:
            number = self._numbers.take(self._view.state.identities)
        except Exhausted:
            # These very labels may have got one of the last numbers, which memory does not know yet; and numbers
            # that are being given out right now may come back, because their labels turn out to have one.
            undecided = self._numbers.undecided
            outcome = await self._store.transact([Absent(labels_key)], [], [labels_key])
            if outcome.succeeded and not undecided:
                raise
            return None if outcome.succeeded else int(outcome.found[labels_key].value)
        try:
            master_key = self._keys.identity(number)
            outcome = await self._store.transact(
                [Absent(labels_key), Absent(master_key)],
                [
                    Put(master_key, canonical.encode()),
                    Put(labels_key, b"%d" % number),
                    Put(self._keys.reference(number, node), b"", lease),
                ],
                [labels_key],
            )
        finally:
            self._numbers.settle(number)
        if outcome.succeeded:
            return Allocation(number, True, outcome.revision)
        return int(outcome.found[labels_key].value) if labels_key in outcome.found else None

    async def _adopt(self, canonical: str, number: int, node: str, lease: int) -> Allocation | int | None:
        """Refer to an identity that exists; else the number that the labels have now, None for none."""
        labels_key, master_key = self._keys.labels(canonical), self._keys.identity(number)
        bound = b"%d" % number
        reference = Put(self._keys.reference(number, node), b"", lease)
        outcome = await self._store.transact(
            [Holds(labels_key, bound), Holds(master_key, canonical.encode())], [reference], [labels_key, master_key]
        )
        if outcome.succeeded:
            return Allocation(number, False, outcome.revision)
        if labels_key not in outcome.found:
            return None
        if outcome.found[labels_key].value != bound:
            return int(outcome.found[labels_key].value)
        if master_key in outcome.found:
            other = outcome.found[master_key].value.decode("utf-8", "replace")
            raise Internal(f"identity {number} has two label sets in etcd: {canonical[:80]!r} and {other[:80]!r}")
        # Somebody deleted the master key by hand: the value key still binds the number, so write it again.
        await self._store.transact(
            [Holds(labels_key, bound), Absent(master_key)], [Put(master_key, canonical.encode()), reference]
        )
        return number
