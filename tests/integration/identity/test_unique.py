"""One number per label set and one label set per number, whoever races with whom."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

import grpc.aio
import pytest

from services.common import tls
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc
from services.identity.store import Absent

pytestmark = pytest.mark.etcd

CLIENTS = 300
LABEL_SETS = 120
REQUESTS = 8


def labels(index: int) -> list[str]:
    return [f"k8s:app=web-{index}", "k8s:io.kubernetes.pod.namespace=default"]


async def test_three_replicas_and_hundreds_of_racing_clients(start: Any, truth: Any) -> None:
    replicas = [await start() for _ in range(3)]
    answers: dict[int, set[int]] = defaultdict(set)
    created: dict[int, int] = defaultdict(int)

    async def client(number: int) -> None:
        generator = random.Random(number)
        async with tls.channel(replicas[number % 3].target, None, "identity") as channel:
            stub = identity_pb2_grpc.IdentityServiceStub(channel)
            for index in generator.sample(range(LABEL_SETS), REQUESTS):
                answer = await stub.Allocate(pb.AllocateRequest(labels=labels(index), node=f"n{number % 40}"))
                answers[index].add(answer.identity.id)
                created[index] += answer.created

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    state = await truth()
    assert len(answers) == LABEL_SETS
    assert all(len(numbers) == 1 for numbers in answers.values()), "a label set has two numbers"
    assert len(set.union(*answers.values())) == LABEL_SETS, "a number has two label sets"
    assert set(created.values()) == {1}
    assert set(state.identities) == set.union(*answers.values())


async def test_few_numbers_are_all_used_and_none_twice(start: Any, truth: Any) -> None:
    replicas = [await start(identity_min=1000, identity_max=1039) for _ in range(3)]
    found = await asyncio.gather(*(replicas[index % 3].allocate(labels(index % 40), "n") for index in range(240)))
    assert sorted(set(found)) == list(range(1000, 1040))
    assert len((await truth()).identities) == 40
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replicas[0].allocate(labels(99), "n")
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1000..1039" in str(refused.value.details())
    assert await replicas[1].allocate(labels(3), "m") == found[3]


async def test_what_is_held_is_never_collected_nor_given_away(start: Any, store: Any, truth: Any) -> None:
    """Clients take, check and give back while three collectors sweep all the time over a tiny range."""
    replicas = [await start(identity_min=1000, identity_max=1019, grace_seconds=0.05) for _ in range(3)]
    held: dict[int, tuple[int, set[str]]] = {}
    rounds = 0

    async def client(number: int) -> None:
        nonlocal rounds
        generator, node = random.Random(number), f"n{number}"
        stop = asyncio.get_running_loop().time() + 4
        while asyncio.get_running_loop().time() < stop:
            index = generator.randrange(12)
            one = replicas[generator.randrange(3)]
            identity = await one.allocate(labels(index), node)
            known, nodes = held.setdefault(identity, (index, set()))
            assert known == index, f"identity {identity} stands for {known} and {index} at once"
            nodes.add(node)
            await asyncio.sleep(generator.random() * 0.1)
            key = f"/ciliate/identity/v1/state/id/{identity:08d}".encode()
            entry = await _read(store, key)
            assert entry is not None, f"identity {identity} was collected while held"
            assert labels(index)[0] in entry
            nodes.discard(node)
            if not nodes:
                held.pop(identity, None)
            await one.stub.Release(pb.ReleaseRequest(id=identity, node=node))
            await asyncio.sleep(generator.random() * 0.2)
            rounds += 1

    await asyncio.gather(*(client(number) for number in range(24)))
    assert rounds > 200
    await truth()


async def _read(store: Any, key: bytes) -> str | None:
    outcome = await store.transact([Absent(key)], [], [key])
    return None if outcome.succeeded else outcome.found[key].value.decode()
