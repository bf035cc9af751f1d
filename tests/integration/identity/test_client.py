"""The typed client of identities, against a real service on a real etcd."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable

import pytest

from services.agent.endpoints.leaks import LeakCheck
from services.agent.endpoints.references import IdentityReferences
from services.agent.endpoints.registrar import Registrar
from services.agent.sources.identities import IdentityClient
from services.client import Identities, InSync, Target
from services.common.errors import Invalid, NotFound, Unavailable
from services.common.retry import Backoff
from services.model.identity import NumericIdentity
from services.model.labels import Labels
from services.model.objects import IpEntry
from tests.integration.identity.conftest import Replica

pytestmark = pytest.mark.etcd

WEB = Labels.parse(["k8s:app=web"])
DB = Labels.parse(["k8s:app=db"])
API = Labels.parse(["k8s:app=api"])


def client(replica: Replica) -> Identities:
    return Identities(Target(replica.target), backoff=Backoff(0.02, 0.1))


async def test_calls_answer_in_the_vocabulary_of_the_model(start: Callable[..., Awaitable[Replica]]) -> None:
    async with client(await start()) as service:
        web = (await service.allocate(WEB, "n1")).identity
        assert (await service.get_by_labels(WEB)) == web
        assert (await service.get(web.id)).nodes == ("n1",)
        assert [identity async for identity in service.list(WEB)] == [web]
        await service.release(web.id, "n1")
        assert (await service.get(web.id)).nodes == ()


async def test_a_release_is_of_one_claim(start: Callable[..., Awaitable[Replica]]) -> None:
    """An older one, however late, does not undo a newer one: neither here nor by way of another replica."""
    async with client(await start()) as service, client(await start()) as other:
        first = await service.allocate(WEB, "n1")
        second = await other.allocate(WEB, "n1")
        assert second.number > first.number
        assert not await service.release(first.identity.id, "n1", first.number)
        assert await service.references("n1") == {first.identity.id: second.number}
        assert await service.references("n2") == {}
        assert await service.release(first.identity.id, "n1", second.number)
        assert await service.references("n1") == {}
        assert not await service.release(first.identity.id, "n1", second.number)
        with pytest.raises(Invalid, match="claim: -1"):
            await service.release(first.identity.id, "n1", -1)
        with pytest.raises(Invalid, match="node"):
            await service.references("")


async def test_what_an_agent_leaked_goes_and_what_it_uses_stays(start: Callable[..., Awaitable[Replica]]) -> None:
    """An agent that died between a claim and its record, and started again; a pod starts while it looks."""
    replica = await start(grace_seconds=0.2)

    def agent() -> IdentityClient:
        return IdentityClient(replica.target, None, "n1", Backoff(0.02, 0.1))

    async with agent() as before:
        web = (await before.allocate(WEB)).identity
        leaked = (await before.allocate(DB)).identity
        soon = (await before.allocate(API)).identity
    async with agent() as after, client(replica) as service, asyncio.timeout(20):
        references = IdentityReferences(after)
        references.adopt(web)
        check = LeakCheck(references, after, Registrar(after, "n1"), 60)
        await references.settle(asyncio.Queue())
        await check.look()
        assert set(await after.references()) == {web.id, leaked.id, soon.id}, "one look decides nothing"
        again, _ = await asyncio.gather(references.acquire(API), check.look())
        assert set(await after.references()) == {web.id, again.id}
        assert (again.id, references.reclaimed) in ((soon.id, 1), (soon.id, 2)), (
            "the pod came before the release, or after"
        )
        while leaked.id in {identity.id async for identity in service.list()}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await check.look()
        await check.look()
        assert set(await after.references()) == {web.id, again.id}


async def test_errors_are_those_of_the_tree(start: Callable[..., Awaitable[Replica]]) -> None:
    async with client(await start()) as service:
        with pytest.raises(NotFound):
            await service.get(4711)
        with pytest.raises(NotFound):
            await service.get_by_labels(WEB)
        with pytest.raises(Invalid, match="node"):
            await service.allocate(WEB, "")


async def test_while_no_replica_can_be_found_every_call_says_why() -> None:
    async def nobody() -> str:
        raise Unavailable("ns/svc: has no ready endpoint")

    async with Identities(Target("k8s://ns/svc:1", find=nobody)) as service:
        with pytest.raises(Unavailable, match="no ready endpoint"):
            await service.get(300)


async def test_a_watch_goes_on_at_another_replica(start: Callable[..., Awaitable[Replica]]) -> None:
    first, second = await start(), await start()
    problems: list[str] = []
    synced = 0
    async with client(first) as service, client(second) as other, asyncio.timeout(30):
        watch = service.watch("w", lambda problem: problems.append(str(problem)) if problem else None)

        async def follow() -> None:
            nonlocal synced
            async for change in watch.changes():
                synced += isinstance(change, InSync)

        follower = asyncio.create_task(follow())
        try:
            web = (await service.allocate(WEB, "n1")).identity
            address = ipaddress.ip_network("10.1.0.1/32")
            entry = IpEntry(address, NumericIdentity(web.id), "n1", None, "default", "web")
            await service.register(entry)
            while watch.entries.get(address) != entry:  # noqa: ASYNC110 - the watch has no condition to wait on
                await asyncio.sleep(0.01)
            await first.stop()
            service.target = other.target
            await other.deregister(address, "n1")
            db = (await other.allocate(DB, "n1")).identity
            # The other replica says that this is all only after it has told it.
            while db.id not in watch.identities or watch.entries or synced < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
    assert problems
    assert synced >= 2
