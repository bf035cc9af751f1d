"""The identity client against a scripted service: snapshots, resumes, resets, outages, lost leases."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from services.agent.sources.identities import IdentityClient
from services.common.errors import Conflict, Unavailable
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc
from services.common.retry import Backoff
from services.model.identity import NumericIdentity
from services.model.labels import Labels
from services.model.objects import (
    IdentityDeleted,
    IdentityUpserted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    Synced,
    Update,
)


def identity(number: int) -> pb.Identity:
    return pb.Identity(id=number, labels=[f"k8s:app=a{number}"])


def row(last: int, number: int = 300) -> pb.Endpoint:
    return pb.Endpoint(prefix=f"10.0.0.{last}/32", identity=number, node="n2", tunnel_endpoint="172.30.0.2", pod="p")


class Service(identity_pb2_grpc.IdentityServiceServicer):
    """Plays one script per Watch call; a script that is used up leaves the stream open."""

    def __init__(self) -> None:
        self.scripts: list[list[Any]] = []
        self.watches: list[tuple[int, str]] = []
        self.leases = [1]
        self.ttl_seconds = 1
        self.kept = asyncio.Event()
        self.error: grpc.StatusCode | None = None
        self.calls: list[Any] = []

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        self.watches.append((request.resume_revision, request.resume_history))
        script = self.scripts.pop(0) if self.scripts else [...]
        for step in script:
            if step is ...:
                await asyncio.Event().wait()
            yield step
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    async def KeepAlive(self, request: pb.KeepAliveRequest, context: Any) -> pb.KeepAliveResponse:
        lease = self.leases.pop(0) if len(self.leases) > 1 else self.leases[0]
        self.kept.set()
        return pb.KeepAliveResponse(ttl_seconds=self.ttl_seconds, lease=lease)

    async def Allocate(self, request: pb.AllocateRequest, context: Any) -> pb.AllocateResponse:
        if self.error:
            await context.abort(self.error, "no")
        return pb.AllocateResponse(identity=pb.Identity(id=400, labels=request.labels))

    async def RegisterEndpoint(self, request: Any, context: Any) -> pb.RegisterEndpointResponse:
        self.calls.append(request.endpoint)
        return pb.RegisterEndpointResponse()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service()
    server = grpc.aio.server()
    identity_pb2_grpc.add_IdentityServiceServicer_to_server(service, server)
    server.add_insecure_port(f"unix://{tmp_path}/identity.sock")
    await server.start()
    yield service
    await server.stop(0)


@pytest.fixture
async def client(service: Service, tmp_path: Path) -> AsyncIterator[IdentityClient]:
    async with IdentityClient(f"unix://{tmp_path}/identity.sock", None, "n1", Backoff(0.01, 0.05)) as client:
        yield client


def said(update: Update) -> str:
    match update:
        case IdentityUpserted(identity=found):
            return f"+{found.id}"
        case IdentityDeleted(id=number):
            return f"-{number}"
        case IpUpserted(entry=entry):
            return f"+{entry.prefix.network_address}={entry.identity}"
        case IpDeleted(prefix=prefix):
            return f"-{prefix.network_address}"
        case Synced(source=source):
            return source
        case other:
            return type(other).__name__


async def read(client: IdentityClient, enough: Callable[[list[str]], bool]) -> list[str]:
    seen: list[str] = []
    updates = client.updates()
    async with asyncio.timeout(10):
        async for update in updates:
            seen.append(said(update))
            if enough(seen):
                break
    await updates.aclose()  # type: ignore[attr-defined]
    return seen


SNAPSHOT = [
    pb.WatchResponse(reset=True, identities=[identity(300), identity(301)], endpoints=[row(1), row(2)]),
    pb.WatchResponse(revision=10, in_sync=True, history="h"),
]


async def test_a_snapshot_then_changes(service: Service, client: IdentityClient) -> None:
    delta = pb.WatchResponse(
        revision=11, endpoints=[row(3)], deleted_prefixes=["10.0.0.1/32"], deleted_identities=[301]
    )
    service.scripts = [[*SNAPSHOT, delta, ...]]
    seen = await read(client, lambda seen: "-301" in seen)
    assert seen == [
        "+300",
        "+301",
        "+10.0.0.1=300",
        "+10.0.0.2=300",
        "identities",
        "+10.0.0.3=300",
        "-10.0.0.1",
        "-301",
    ]
    assert client.entries[ipaddress.ip_network("10.0.0.3/32")].tunnel == ipaddress.ip_address("172.30.0.2")


async def test_a_broken_stream_goes_on_where_it_was_and_says_nothing_twice(
    service: Service, client: IdentityClient
) -> None:
    again = pb.WatchResponse(revision=12, identities=[identity(300)], endpoints=[row(2), row(4)], in_sync=True)
    service.scripts = [[*SNAPSHOT, pb.WatchResponse(revision=11, identities=[identity(302)])], [again, ...]]
    seen = await read(client, lambda seen: "+10.0.0.4=300" in seen)
    assert seen[4:] == ["identities", "+302", "+10.0.0.4=300"]
    assert service.watches == [(0, ""), (11, "h")]
    assert client.errors == {"identity service": "going away"} or not client.errors


async def test_a_reset_removes_what_the_new_snapshot_does_not_name(service: Service, client: IdentityClient) -> None:
    other = [
        pb.WatchResponse(reset=True, identities=[identity(301), identity(303)]),
        pb.WatchResponse(endpoints=[row(2, 301)]),
        pb.WatchResponse(revision=5, in_sync=True, history="i"),
    ]
    service.scripts = [SNAPSHOT, other, [...]]
    seen = await read(client, lambda seen: "-300" in seen)
    assert seen[5:] == ["+303", "+10.0.0.2=301", "-10.0.0.1", "-300"]


async def test_half_a_snapshot_is_asked_for_again(service: Service, client: IdentityClient) -> None:
    service.scripts = [SNAPSHOT[:1], [*SNAPSHOT, ...]]
    seen = await read(client, lambda seen: "identities" in seen)
    assert seen == ["+300", "+301", "+10.0.0.1=300", "+10.0.0.2=300", "identities"]
    assert service.watches == [(0, ""), (0, "")]


async def test_while_the_service_is_away_the_last_state_stays(tmp_path: Path) -> None:
    async with IdentityClient(f"unix://{tmp_path}/nobody.sock", None, "n1", Backoff(0.01, 0.05)) as client:
        updates = client.updates()
        reading = asyncio.create_task(anext(updates))  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            while not client.errors:  # noqa: ASYNC110 - the client changes it
                await asyncio.sleep(0.01)
        assert "identity service" in client.errors
        with pytest.raises(Unavailable):
            await client.allocate(Labels.parse(["k8s:a=b"]))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_calls_raise_errors_of_the_tree(service: Service, client: IdentityClient) -> None:
    labels = Labels.parse(["k8s:app=web"])
    found = (await client.allocate(labels)).identity
    assert (found.id, found.labels) == (400, labels)
    service.error = grpc.StatusCode.ALREADY_EXISTS
    with pytest.raises(Conflict, match="no"):
        await client.allocate(labels)
    entry = IpEntry(ipaddress.ip_network("fd00::1/128"), NumericIdentity(400), "n1", None, "default", "web")
    await client.register(entry)
    assert (service.calls[0].prefix, service.calls[0].tunnel_endpoint) == ("fd00::1/128", "")


async def test_a_lost_lease_is_noticed(service: Service, client: IdentityClient) -> None:
    service.leases = [7, 7, 8]
    lapsed = asyncio.Event()
    keeping = asyncio.create_task(client.keep_alive(lapsed.set))
    await asyncio.wait_for(lapsed.wait(), 5)
    keeping.cancel()


async def test_a_stream_that_begins_anew_asks_for_the_lease_at_once(service: Service, client: IdentityClient) -> None:
    service.leases, service.ttl_seconds, service.scripts = [7], 900, [[*SNAPSHOT, ...]]
    lapsed = asyncio.Event()
    keeping = asyncio.create_task(client.keep_alive(lapsed.set))
    await asyncio.wait_for(service.kept.wait(), 20)
    service.leases = [8]
    reading = asyncio.create_task(read(client, lambda _: False))
    await asyncio.wait_for(lapsed.wait(), 20)
    for task in (keeping, reading):
        task.cancel()


async def test_a_service_that_moves_is_found_again(service: Service, tmp_path: Path) -> None:
    async def find() -> str:
        if not there:
            raise Unavailable("no ready endpoint")
        return f"unix://{tmp_path}/identity.sock"

    there = False
    service.scripts = [[*SNAPSHOT, ...]]
    async with IdentityClient("k8s://ns/identity:4250", None, "n1", Backoff(0.01, 0.05), find) as client:
        reading = asyncio.create_task(read(client, bool))
        async with asyncio.timeout(10):
            while not client.errors:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="no ready endpoint"):
            await client.allocate(Labels.parse(["k8s:a=b"]))
        there = True
        assert await asyncio.wait_for(reading, 10)
