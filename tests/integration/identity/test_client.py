"""The typed client of identities, against a real service on a real etcd."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable

import pytest

from services.client import Identities, InSync, Target
from services.common.errors import Invalid, NotFound
from services.common.retry import Backoff
from services.model.identity import NumericIdentity
from services.model.labels import Labels
from services.model.objects import IpEntry
from tests.integration.identity.conftest import Replica

pytestmark = pytest.mark.etcd

WEB = Labels.parse(["k8s:app=web"])
DB = Labels.parse(["k8s:app=db"])


def client(replica: Replica) -> Identities:
    return Identities(Target(replica.target), backoff=Backoff(0.02, 0.1))


async def test_calls_answer_in_the_vocabulary_of_the_model(start: Callable[..., Awaitable[Replica]]) -> None:
    async with client(await start()) as service:
        web = await service.allocate(WEB, "n1")
        assert (await service.get_by_labels(WEB)) == web
        assert (await service.get(web.id)).nodes == ("n1",)
        assert [identity async for identity in service.list(WEB)] == [web]
        await service.release(web.id, "n1")
        assert (await service.get(web.id)).nodes == ()


async def test_errors_are_those_of_the_tree(start: Callable[..., Awaitable[Replica]]) -> None:
    async with client(await start()) as service:
        with pytest.raises(NotFound):
            await service.get(4711)
        with pytest.raises(NotFound):
            await service.get_by_labels(WEB)
        with pytest.raises(Invalid, match="node"):
            await service.allocate(WEB, "")


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
            web = await service.allocate(WEB, "n1")
            address = ipaddress.ip_network("10.1.0.1/32")
            entry = IpEntry(address, NumericIdentity(web.id), "n1", None, "default", "web")
            await service.register(entry)
            while watch.entries.get(address) != entry:  # noqa: ASYNC110 - the watch has no condition to wait on
                await asyncio.sleep(0.01)
            await first.stop()
            service.target = other.target
            await other.deregister(address, "n1")
            db = await other.allocate(DB, "n1")
            while db.id not in watch.identities or watch.entries:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
    assert problems
    assert synced >= 2
