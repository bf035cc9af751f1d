"""The typed client of flows, against a real relay that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import sys
import time
from collections.abc import AsyncIterator

import pytest

from services.client import Flows, FlowSeen, Interrupted, NodesChanged, Target
from services.common.errors import Denied, Unavailable
from services.common.pb.flow import flow_pb2
from services.common.retry import Backoff
from services.flows.columns import Kind
from services.relay.app import serving
from services.relay.config import Config
from tests.integration.relay.conftest import START, Place, until

BEFORE = datetime.datetime.fromtimestamp(START / 1e9 - 60, datetime.UTC)


def flows(place: Place, role: str = "client") -> Flows:
    return Flows(Target(place.target, place.files(role)), backoff=Backoff(0.02, 0.1))


@contextlib.asynccontextmanager
async def relay_with_history(place: Place) -> AsyncIterator[None]:
    """A relay that knows after a restart what it knew before."""
    files = place.files("relay")
    config = Config(
        listen=[place.target],
        node_name="relay-0",
        history_dir=str(place.directory / "flows"),
        tls_ca=files.ca,
        tls_cert=files.cert,
        tls_key=files.key,
    )
    async with serving(config, place.registry.__class__()):
        yield


async def test_a_query_returns_items_with_their_details(place: Place) -> None:
    agent = place.agent()
    async with place.relay(), agent.pushing(), flows(place) as client:
        agent.emit(3, kind=int(Kind.CLOSE), bytes=70, time_ns=time.time_ns())
        await until(lambda: agent.pusher.acknowledged_rows == 3)
        items = [item async for item in client.query(details=True)]
        seen = [item for item in items if isinstance(item, FlowSeen)]
        assert [item.details.bytes for item in seen if item.details] == [70, 70, 70]
        assert [item.node for item in seen] == ["node1"] * 3
        assert any(isinstance(item, NodesChanged) and item.state == "NODE_CONNECTED" for item in items)
        nobody = flow_pb2.FlowFilter(source_pod=["default/nobody"])
        assert not [item async for item in client.query([nobody]) if isinstance(item, FlowSeen)]
        assert len([item async for item in client.query(last=2) if isinstance(item, FlowSeen)]) == 2
        assert (await client.status()).seen_flows == 3
        assert [node.name for node in await client.nodes()] == ["node1"]
        assert [namespace.namespace for namespace in await client.namespaces()] == ["default"]


async def test_a_follower_goes_on_over_a_restart_and_is_told_nothing_twice(place: Place) -> None:
    agent = place.agent()
    told: list[str] = []
    interruptions: list[str] = []

    async def follow() -> None:
        async with flows(place) as client:
            async for item in client.follow(since=BEFORE):
                if isinstance(item, FlowSeen):
                    told.append(item.flow.uuid)
                elif isinstance(item, Interrupted):
                    interruptions.append(item.problem)

    async with agent.pushing():
        async with asyncio.timeout(30), relay_with_history(place):
            follower = asyncio.create_task(follow())
            try:
                agent.emit(10)
                await until(lambda: len(told) == 10)
            except BaseException:
                follower.cancel()
                raise
        try:
            await until(lambda: bool(interruptions))
            agent.emit(10)  # while nobody is there
            async with relay_with_history(place):
                await until(lambda: len(told) >= 20)
                agent.emit(5)
                await until(lambda: len(told) >= 25)
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
    assert len(told) == len(set(told)) == 25


async def test_errors_are_those_of_the_tree(place: Place) -> None:
    async with flows(place) as client:
        with pytest.raises(Unavailable):
            await client.status()
    async with place.relay(), flows(place, "agent") as client:
        with pytest.raises(Denied, match="role agent may not read flows"):
            await client.status()


async def test_the_example_prints_dropped_flows(place: Place) -> None:
    agent = place.agent()
    files = place.files("client")
    tls = ["--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key]
    async with place.relay(), agent.pushing(), asyncio.timeout(30):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.client.examples.follow_flows", "--address", place.target, *tls),
            *("--count", "2"),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            while process.returncode is None:
                agent.emit(1, verdict=2, drop_reason=133, kind=int(Kind.DROP))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 0.2)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.stdout is not None
        lines = (await process.stdout.read()).decode().splitlines()
    assert len(lines) == 2
    assert "default/client -> default/server POLICY_DENIED" in lines[0]
