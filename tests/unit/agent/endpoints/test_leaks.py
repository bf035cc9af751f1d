"""Whatever happens between an agent and the identity service: what is used is held, what is not used is given back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import hypothesis
from hypothesis import strategies as st

from services.agent.endpoints.leaks import LeakCheck, Unexplained
from services.agent.endpoints.references import IdentityReferences
from services.agent.endpoints.registrar import Registrar
from services.common.errors import CiliateError, Unavailable
from services.model.identity import Identity, NumericIdentity
from services.model.labels import Labels
from tests.unit.agent.endpoints.fakes import FakeIdentities

T = TypeVar("T")
LABELS = [Labels.parse([f"k8s:app={name}"]) for name in "ab"]


@dataclass(slots=True)
class Call:
    """A request under way: first it takes effect, then the caller hears of it."""

    effect: Callable[[], Awaitable[Any]]
    answer: asyncio.Future[Any]
    result: Any = None
    done: bool = False


class Wire:
    """The identity service behind a network that delays: every step of every call is somebody's decision."""

    def __init__(self) -> None:
        self.service = FakeIdentities()
        self.calls: list[Call] = []
        self.late: list[Call] = []
        """Their callers have given up; they may still take effect."""

    async def _call(self, effect: Callable[[], Awaitable[T]]) -> T:
        call = Call(effect, asyncio.get_running_loop().create_future())
        self.calls.append(call)
        try:
            return await call.answer  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            self._give_up(call)
            raise

    async def allocate(self, labels: Labels) -> Any:
        return await self._call(lambda: self.service.allocate(labels))

    async def release(self, identity: NumericIdentity, claim: int) -> bool:
        return await self._call(lambda: self.service.release(identity, claim))

    async def references(self) -> dict[NumericIdentity, int]:
        return await self._call(self.service.references)

    async def register(self, entry: Any) -> None:
        raise AssertionError("no rows here")

    deregister = register

    async def step(self, which: int) -> None:
        if self.calls:
            call = self.calls[which % len(self.calls)]
            if not call.done:
                call.result, call.done = await call.effect(), True
            else:
                self.calls.remove(call)
                call.answer.set_result(call.result)

    def fail(self, which: int) -> None:
        if self.calls:
            call = self.calls[which % len(self.calls)]
            self._give_up(call)
            call.answer.set_exception(Unavailable("identity service: no answer"))

    async def land(self, which: int) -> None:
        if self.late:
            await self.late.pop(which % len(self.late)).effect()

    def _give_up(self, call: Call) -> None:
        if call in self.calls:
            self.calls.remove(call)
            if not call.done:
                self.late.append(call)


class Node:
    """An agent that can die at any moment. `pods`: label sets that endpoints have; they outlive the process."""

    def __init__(self) -> None:
        self.wire, self.pods = Wire(), Counter[Labels]()
        self.numbers: dict[Labels, NumericIdentity] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.begin()

    def begin(self) -> None:
        self.references = IdentityReferences(self.wire)
        for labels in self.pods.elements():
            self.references.adopt(Identity(self.numbers[labels], labels))
        self.check = LeakCheck(self.references, self.wire, Registrar(self.wire, "n"), 60)
        self.looking = self.settling = False

    async def die(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        self.begin()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def quietly() -> None:
            try:
                await work
            except CiliateError:
                return

        self.tasks.append(asyncio.create_task(quietly()))

    async def add(self, labels: Labels) -> None:
        identity = await self.references.acquire(labels)
        self.numbers[labels] = identity.id
        self.pods[labels] += 1

    async def delete(self, labels: Labels) -> None:
        if self.pods[labels] > 0:
            self.pods[labels] -= 1
            await self.references.release(labels)

    async def look(self) -> None:
        if not self.looking:
            self.looking = True
            try:
                await self.check.look()
            finally:
                self.looking = False

    async def settle(self) -> None:
        if not self.settling:
            self.settling = True
            try:
                await self.references.settle(asyncio.Queue())
            finally:
                self.settling = False

    async def drain(self) -> None:
        """Let everything that is under way end well."""
        while not all(task.done() for task in self.tasks):
            await self.wire.step(0)
            await breathe()
        self.tasks.clear()

    @property
    def wanted(self) -> set[int]:
        return {int(self.numbers[labels]) for labels in +self.pods}


async def breathe() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


# Whole calls are more likely than their parts, or hardly any plan would get as far as a second look.
step = st.tuples(st.sampled_from(["step", "step", "fail", "land"]), st.integers(0, 3))
pods = st.tuples(st.sampled_from(["add", "delete"]), st.integers(0, 1))
rounds = st.tuples(st.sampled_from(["look", "settle", "drain", "die"]), st.just(0))
steps = st.lists(st.one_of(step, pods, rounds), max_size=40)
LATE_RELEASE = [("look", 0), ("drain", 0), ("look", 0), ("step", 0), ("step", 0), ("add", 0), ("step", 1), ("step", 1)]


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(steps)
@hypothesis.example([*LATE_RELEASE, ("step", 0)])
@hypothesis.example([*LATE_RELEASE, ("fail", 0), ("land", 0)])
def test_in_any_order_of_answers_losses_and_deaths(plan: list[tuple[str, int]]) -> None:
    asyncio.run(live(plan))


async def live(plan: list[tuple[str, int]]) -> None:
    node = Node()
    for labels in LABELS:
        await node.wire.service.allocate(labels)  # leaked before the plan begins
    for what, which in plan:
        match what:
            case "add":
                node.spawn(node.add(LABELS[which]))
            case "delete":
                node.spawn(node.delete(LABELS[which]))
            case "look":
                node.spawn(node.look())
            case "settle":
                node.spawn(node.settle())
            case "step":
                await node.wire.step(which)
            case "fail":
                node.wire.fail(which)
            case "land":
                await node.wire.land(which)
            case "drain":
                await node.drain()
            case "die":
                await node.die()
        await breathe()
        assert node.wanted <= node.wire.service.held, f"{what} took what is in use"
    await node.drain()
    while node.wire.late:
        await node.wire.land(0)
        assert node.wanted <= node.wire.service.held, "what came late took what is in use"
    for again in (node.settle, node.look, node.look):
        node.spawn(again())
        await node.drain()
    assert node.wire.service.held == node.wanted, "nothing leaks for longer than two looks"


def test_it_takes_two_looks_at_the_same_claim() -> None:
    """A claim that was renewed in between is somebody's at work."""
    one, two = NumericIdentity(300), NumericIdentity(301)
    looks = Unexplained()
    assert looks.due({one: 5, two: 6}, ()) == {}
    assert looks.due({one: 5, two: 9}, ()) == {one: 5}
    assert looks.due({two: 9}, {two}) == {}
    assert looks.due({two: 9}, ()) == {}, "it was used meanwhile: from the beginning"
    assert looks.due({one: 7}, (), {one}) == {one: 7}, "what is known to be unused needs no second look"
