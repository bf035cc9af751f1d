"""Leader election: who may take a lease, and that two never lead at once, whatever their clocks say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from services.common.errors import Conflict, NotFound, Unavailable
from services.operator.leader import Leader, Observed, Timing
from tests.kube.virtual import run_virtual

TIMING = Timing(15, 10, 2)


def lease(holder: str, renewed: str = "1", seconds: object = 15) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": seconds}}


@pytest.mark.parametrize(
    ("seen", "now", "taken"),
    [
        ([(None, 0)], 0, True),
        ([(lease(""), 0)], 0, True),
        ([(lease("me"), 0)], 0, True),
        ([(lease("other"), 0)], 14.9, False),
        ([(lease("other"), 0)], 15, True),
        ([(lease("other"), 0), (lease("other"), 14)], 15, True),
        ([(lease("other"), 0), (lease("other", "2"), 14)], 28, False),
        ([(lease("other", "1970-01-01T00:00:00Z"), 0)], 14, False),  # its clock is wrong, or ours is
        ([(lease("other", "2999-01-01T00:00:00Z"), 0)], 15, True),
        ([(lease("other", seconds=40), 0)], 39, False),
        ([(lease("other", seconds="absurd"), 0)], 15, True),
        ([(lease("other", seconds=-1), 0)], 14, False),
        ([({"spec": "absurd"}, 0)], 0, True),
        ([({}, 0)], 0, True),
    ],
)
def test_who_may_take_it(seen: list[tuple[Any, float]], now: float, taken: bool) -> None:
    observed = Observed("me", TIMING)
    for document, at in seen:
        observed.observe(document, at)
    assert observed.may_take(now) is taken


class Server:
    """One lease; cut off from some clients at will."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.cut: set[str] = set()

    def client(self, name: str) -> Client:
        return Client(self, name)


class Client:
    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name

    async def _reach(self) -> None:
        await asyncio.sleep(0.01)
        if self._name in self._server.cut:
            await asyncio.sleep(3)
            raise Unavailable("no route")

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        await self._reach()
        if self._server.lease is None:
            raise NotFound("no lease")
        return dict(self._server.lease)

    async def create(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        await self._reach()
        if self._server.lease is not None:
            raise Conflict("there is one")
        return self._keep(document)

    async def replace(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        await self._reach()
        if document["metadata"]["resourceVersion"] != str(self._server.version):
            raise Conflict("modified")
        return self._keep(document)

    def _keep(self, document: Mapping[str, Any]) -> dict[str, Any]:
        self._server.version += 1
        metadata = {**document["metadata"], "resourceVersion": str(self._server.version)}
        self._server.lease = {**document, "metadata": metadata}
        return self._server.lease


class Cluster:
    """Candidates, and who of them led when."""

    def __init__(self) -> None:
        self.server, self.acting = Server(), set[str]()
        self.most, self.reigns = 0, list[str]()
        self.leaders: dict[str, Leader] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str) -> None:
        leader = Leader(self.server.client(name), "kube-system", "operator", name, TIMING)

        async def lead() -> None:
            self.acting.add(name)
            self.reigns.append(name)
            self.most = max(self.most, len(self.acting))
            try:
                await asyncio.Event().wait()
            finally:
                self.acting.discard(name)

        self.leaders[name] = leader
        self.tasks[name] = asyncio.create_task(leader.run(lead))

    async def stop(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)


def test_one_of_three_leads_and_the_next_follows_at_once_when_it_ends() -> None:
    async def story() -> None:
        cluster = Cluster()
        for name in ("a", "b", "c"):
            cluster.start(name)
        await asyncio.sleep(60)
        assert len(cluster.reigns) == 1
        first = cluster.reigns[0]
        await cluster.stop(first)
        await asyncio.sleep(5)
        assert len(cluster.reigns) == 2
        assert cluster.most == 1
        for name in cluster.tasks:
            await cluster.stop(name)

    run_virtual(story())


def test_a_leader_that_is_cut_off_stops_before_the_next_one_begins() -> None:
    async def story() -> None:
        cluster = Cluster()
        cluster.start("a")
        await asyncio.sleep(5)
        cluster.start("b")
        await asyncio.sleep(30)
        assert cluster.acting == {"a"}
        for _ in range(5):
            (leading,) = cluster.acting
            cluster.server.cut = {leading}
            await asyncio.sleep(12)
            assert cluster.acting == set(), "it stopped by itself"
            with pytest.raises(Unavailable, match="not the leader"):
                cluster.leaders[leading].require()
            await asyncio.sleep(12)
            assert cluster.acting == {"a", "b"} - {leading}
            cluster.server.cut = set()
            await asyncio.sleep(20)
        assert cluster.most == 1
        for name in cluster.tasks:
            await cluster.stop(name)

    run_virtual(story())


def test_an_hour_without_the_server_ends_in_one_leader() -> None:
    async def story() -> None:
        cluster = Cluster()
        cluster.start("a")
        cluster.start("b")
        await asyncio.sleep(10)
        cluster.server.cut = {"a", "b"}
        await asyncio.sleep(3600)
        assert not cluster.acting
        cluster.server.cut = set()
        await asyncio.sleep(30)
        assert len(cluster.acting) == 1
        assert cluster.most == 1
        for name in cluster.tasks:
            await cluster.stop(name)

    run_virtual(story())


def test_what_the_work_raises_ends_the_process() -> None:
    async def story() -> None:
        leader = Leader(Server().client("a"), "kube-system", "operator", "a", TIMING)

        async def lead() -> None:
            raise RuntimeError("a defect")

        with pytest.raises(RuntimeError, match="a defect"):
            await leader.run(lead)

    run_virtual(story())


def test_timings_that_let_two_lead_are_refused() -> None:
    with pytest.raises(ValueError, match="retry must be less"):
        Timing(10, 15, 2)
