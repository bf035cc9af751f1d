"""Leases and the address table on the in-memory store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.errors import Conflict, NotFound
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.identity.endpoints import Registration

PREFIX = "10.0.0.1/32"


def row(identity: int, node: str, pod: str = "web") -> Registration:
    message = pb.Endpoint(prefix=PREFIX, identity=identity, node=node, pod=pod)
    return Registration(PREFIX, identity, node, message.SerializeToString())


async def test_replicas_agree_on_a_node_s_lease(cluster: Any) -> None:
    replicas = [await cluster.replica() for _ in range(3)]
    leases = await asyncio.gather(*(replicas[index % 3].leases.of("a") for index in range(30)))
    assert len(set(leases)) == 1


async def test_keeping_alive_tells_when_the_lease_was_lost(parts: Any) -> None:
    seconds, lease = await parts.leases.keep_alive("a")
    assert seconds == 60
    assert await parts.leases.keep_alive("a") == (60, lease)
    await parts.store.expire(lease)
    assert (await parts.leases.keep_alive("a"))[1] != lease


async def test_a_row_needs_its_node_s_reference(parts: Any) -> None:
    with pytest.raises(NotFound, match="node a holds no reference to identity 300"):
        await parts.registry.register(row(300, "a"))
    found = await parts.allocator.allocate("k8s:app=web;", "a")
    await parts.registry.register(row(found.id, "a"))
    with pytest.raises(NotFound, match="node b holds no reference"):
        await parts.registry.register(row(found.id, "b"))
    await parts.caught_up()
    assert set(parts.mirror.state.rows) == {PREFIX}


async def test_a_row_can_be_changed_by_its_node_alone(cluster: Any) -> None:
    parts, other = await cluster.replica(), await cluster.replica()
    await parts.registry.register(row(6, "a"))
    await parts.registry.register(row(6, "a", pod="changed"))
    with pytest.raises(Conflict, match="belongs to node a"):
        await other.registry.register(row(6, "b"))
    await other.caught_up()
    with pytest.raises(Conflict, match="belongs to node a"):
        await other.registry.register(row(6, "b"))
    assert await other.registry.deregister(PREFIX, "b") == 0
    await other.caught_up()
    assert set(other.mirror.state.rows) == {PREFIX}


async def test_a_row_is_free_once_deregistered_or_its_node_is_gone(parts: Any) -> None:
    await parts.registry.register(row(6, "a"))
    assert await parts.registry.deregister(PREFIX, "a") > 0
    assert await parts.registry.deregister(PREFIX, "a") == 0
    await parts.registry.register(row(6, "b"))
    await parts.store.expire(await parts.leases.of("b"))
    await parts.registry.register(row(6, "a"))
    await parts.caught_up()
    assert pb.Endpoint.FromString(parts.mirror.state.rows[PREFIX].value).node == "a"


async def test_deregistering_does_not_depend_on_memory(parts: Any) -> None:
    await parts.registry.register(row(6, "a"))
    parts.mirror.state.rows.clear()
    assert await parts.registry.deregister(PREFIX, "a") > 0
