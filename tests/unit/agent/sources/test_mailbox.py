"""The mailbox: state coalesces, order of the newest is kept."""

from __future__ import annotations

import asyncio

from services.agent.sources.base import Mailbox
from services.model.identity import NumericIdentity
from services.model.objects import Deleted, IdentityDeleted, ObjectKey, Pod, Synced, Upserted


async def test_only_the_latest_about_one_thing_is_left() -> None:
    mailbox = Mailbox()
    pod = Pod("default", "a")
    mailbox.put(Upserted(pod))
    mailbox.put(IdentityDeleted(NumericIdentity(300)))
    mailbox.put(Synced("objects"))
    mailbox.put(Deleted(pod.key))
    assert len(mailbox) == 3
    assert await mailbox.take() == [IdentityDeleted(NumericIdentity(300)), Synced("objects"), Deleted(pod.key)]


async def test_take_waits_for_something() -> None:
    mailbox = Mailbox()
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    mailbox.put(Deleted(ObjectKey("Pod", "a", "b")))
    assert await asyncio.wait_for(taking, 1) == [Deleted(ObjectKey("Pod", "a", "b"))]
