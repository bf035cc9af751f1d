"""A real etcd, replicas with real gRPC on loopback, and watchers that behave as agents do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.common import tls
from services.common.etcd_server import EtcdServer
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc
from services.identity.app import replica
from services.identity.config import Config
from services.identity.etcd import EtcdStore
from services.identity.keys import Keys, below
from services.identity.state import State


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    async with EtcdServer(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
async def store(etcd: EtcdServer) -> AsyncIterator[EtcdStore]:
    async with EtcdStore([etcd.endpoint]) as opened:
        yield opened


@dataclasses.dataclass
class Replica:
    """One running replica. `stop` ends it; its port stays known."""

    target: str
    stub: Any
    stop: Callable[[], Awaitable[None]]

    async def allocate(self, labels: list[str], node: str) -> int:
        answer = await self.stub.Allocate(pb.AllocateRequest(labels=labels, node=node))
        return int(answer.identity.id)

    async def ready(self) -> None:
        """Until it has read etcd and follows it."""
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.stub.KeepAlive(pb.KeepAliveRequest(node="probe"))
                    return
                await asyncio.sleep(0.02)


@pytest.fixture
async def start(etcd: EtcdServer) -> AsyncIterator[Callable[..., Awaitable[Replica]]]:
    """`await start(**configuration)`: one more replica, plaintext unless told otherwise."""
    async with AsyncExitStack() as everything:

        async def start_one(wait: bool = True, **settings: Any) -> Replica:
            config = Config(
                **({"insecure": True, "listen": ["127.0.0.1:0"], "etcd_endpoints": [etcd.endpoint]} | settings)
            )
            task_stack = AsyncExitStack()
            started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            stop = asyncio.Event()

            # A task of its own: a task group must be left by the task that entered it.
            async def live() -> None:
                async with replica(config) as server:
                    started.set_result(server.ports[0])
                    await stop.wait()

            task = asyncio.create_task(live(), name="replica")

            async def end() -> None:
                stop.set()
                await task
                await task_stack.aclose()

            everything.push_async_callback(end)
            await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            target = f"127.0.0.1:{started.result()}"
            channel = await task_stack.enter_async_context(tls.channel(target, None, "identity"))
            one = Replica(target, identity_pb2_grpc.IdentityServiceStub(channel), end)
            if wait:
                await one.ready()
            return one

        yield start_one


class Watcher:
    """An agent's view: applies messages, resumes after failures, notes resets and order violations."""

    def __init__(self) -> None:
        self.identities: dict[int, tuple[str, ...]] = {}
        self.endpoints: dict[str, pb.Endpoint] = {}
        self.revision = 0
        self.history = ""
        self.resets = 0
        self.connections = 0
        self.problems: list[str] = []
        self.changed = asyncio.Condition()

    def apply(self, message: pb.WatchResponse) -> None:
        if message.reset:
            self.identities, self.endpoints = {}, {}
            self.resets += 1
        self.identities.update({identity.id: tuple(identity.labels) for identity in message.identities})
        for endpoint in message.endpoints:
            if endpoint.identity not in self.identities:
                self.problems.append(f"{endpoint.prefix} came before identity {endpoint.identity}")
            self.endpoints[endpoint.prefix] = endpoint
        for prefix in message.deleted_prefixes:
            self.endpoints.pop(prefix, None)
        for number in message.deleted_identities:
            self.identities.pop(number, None)
        self.revision = message.revision
        self.history = message.history or self.history

    async def run(self, stub: Any, node: str = "watcher") -> None:
        """Follow until cancelled."""
        while True:
            self.connections += 1
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for message in stub.Watch(self.request(node)):
                    self.apply(message)
                    async with self.changed:
                        self.changed.notify_all()
            await asyncio.sleep(0.05)

    def request(self, node: str) -> pb.WatchRequest:
        """How an agent resumes."""
        return pb.WatchRequest(resume_revision=self.revision, resume_history=self.history, node=node)

    async def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        """Until `condition` holds after some message."""
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(condition)

    @property
    def cluster(self) -> dict[int, tuple[str, ...]]:
        """Identities that are not reserved."""
        return {number: labels for number, labels in self.identities.items() if number >= 256}


@pytest.fixture
async def watch() -> AsyncIterator[Callable[..., Watcher]]:
    """`watch(replica)`: a watcher that follows it until the test ends."""
    tasks: list[asyncio.Task[None]] = []

    def begin(replica: Replica, watcher: Watcher | None = None) -> Watcher:
        watcher = watcher or Watcher()
        tasks.append(asyncio.create_task(watcher.run(replica.stub), name="watcher"))
        return watcher

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def truth(store: EtcdStore) -> Callable[[], Awaitable[State]]:
    """`await truth()`: what etcd holds, read past every replica; also checks that its keys agree."""

    async def read() -> State:
        keys = Keys()
        state = State(keys)
        page = await store.page(keys.state)
        for entry in page.entries:
            state.apply(entry)
        bound = {}
        prefix = keys.labels("")
        for entry in (await store.page(below(prefix), page.revision)).entries:
            bound[entry.key[len(prefix) :].decode()] = int(entry.value)
        assert bound == state.by_labels, "value keys and master keys disagree"
        assert len(state.by_labels) == len(state.identities), "one label set has two numbers"
        return state

    return read
