"""The process as it is run: mutual TLS, roles, health, statuses, graceful end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common import tls
from services.common.authority import issue, make_authority
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc

pytestmark = pytest.mark.etcd
WEB = ["k8s:app=web"]


@pytest.fixture
async def process(tmp_path: Path, etcd: Any) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, Path]]:
    """`python -m services.identity` on a unix socket with mutual TLS; (process, target, directory of the CA)."""
    authority = tmp_path / "pki"
    make_authority(authority)
    files = issue(authority, "identity")
    target = f"unix://{tmp_path}/identity.sock"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.identity", "--listen", target, "--listen", "127.0.0.1:0"),
        *("--etcd-endpoints", etcd.endpoint, "--log-format", "json", "--metrics-address", "127.0.0.1:0"),
        *("--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield child, target, authority
    finally:
        if child.returncode is None:
            os.kill(child.pid, signal.SIGKILL)
        await child.wait()


async def health(channel: grpc.aio.Channel, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), wait_for_ready=True, timeout=15)
    return int(answer.status)


async def until_serving(channel: grpc.aio.Channel, name: str, serving: bool = True) -> None:
    wanted = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    async with asyncio.timeout(20):
        while await health(channel, name) != wanted:  # noqa: ASYNC110 - asks another process
            await asyncio.sleep(0.05)


async def test_roles_health_and_the_end(process: Any, etcd: Any) -> None:
    child, target, authority = process
    name = pb.DESCRIPTOR.services_by_name["IdentityService"].full_name
    agent = issue(authority, "agent", "a")
    async with tls.channel(target, agent, "identity") as channel:
        await until_serving(channel, name)
        stub = identity_pb2_grpc.IdentityServiceStub(channel)
        number = (await stub.Allocate(pb.AllocateRequest(labels=WEB, node="a"))).identity.id
        for request in (
            stub.Allocate(pb.AllocateRequest(labels=WEB, node="b")),
            stub.Release(pb.ReleaseRequest(id=number, node="b")),
            stub.KeepAlive(pb.KeepAliveRequest(node="b")),
            stub.RegisterEndpoint(
                pb.RegisterEndpointRequest(endpoint=pb.Endpoint(prefix="10.0.0.1/32", identity=number, node="b"))
            ),
            stub.DeregisterEndpoint(pb.DeregisterEndpointRequest(prefix="10.0.0.1/32", node="b")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as denied:
                await request
            assert denied.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert "certificate is of node 'a'" in str(denied.value.details())
    async with tls.channel(target, issue(authority, "client"), "identity") as channel:
        stub = identity_pb2_grpc.IdentityServiceStub(channel)
        assert list((await stub.Get(pb.GetRequest(id=number))).referenced_by) == ["a"]
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await stub.Allocate(pb.AllocateRequest(labels=WEB, node="a"))
        assert denied.value.code() == grpc.StatusCode.PERMISSION_DENIED
        await etcd.stop()
        await until_serving(channel, "ciliate.identity.etcd", serving=False)
        assert await health(channel, name) == health_pb2.HealthCheckResponse.SERVING
        assert (await stub.GetByLabels(pb.GetByLabelsRequest(labels=WEB))).identity.id == number
        watching = stub.Watch(pb.WatchRequest(node="cli"))
        assert (await watching.read()).reset
        os.kill(child.pid, signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await child.wait() == 0
        log = (await child.stderr.read()).decode()
    assert "Traceback" not in log
    assert '"event": "serving"' in log


async def test_nobody_gets_in_without_a_certificate(process: Any, tmp_path: Path) -> None:
    _, target, authority = process
    async with tls.channel(target, issue(authority, "client"), "identity") as channel:
        await until_serving(channel, "")
    make_authority(tmp_path / "other")
    for files in (None, issue(tmp_path / "other", "agent", "a")):
        async with tls.channel(target, files, "identity") as channel:
            stub = identity_pb2_grpc.IdentityServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Get(pb.GetRequest(id=1), timeout=5)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


STATUSES = [
    ("Allocate", pb.AllocateRequest(labels=["app=web"], node="a"), "INVALID_ARGUMENT", "labels: 'app'"),
    ("Allocate", pb.AllocateRequest(labels=WEB), "INVALID_ARGUMENT", "node: empty"),
    ("Get", pb.GetRequest(id=300), "NOT_FOUND", "no identity 300"),
    ("Get", pb.GetRequest(id=1 << 24), "INVALID_ARGUMENT", "id: 16777216"),
    ("GetByLabels", pb.GetByLabelsRequest(labels=["k8s:app=nobody"]), "NOT_FOUND", "k8s:app=nobody"),
    ("Release", pb.ReleaseRequest(node="a"), "INVALID_ARGUMENT", "id: 0"),
    (
        "RegisterEndpoint",
        pb.RegisterEndpointRequest(endpoint=pb.Endpoint(prefix="10.0.0.1/32", identity=300, node="a")),
        "NOT_FOUND",
        "allocate it first",
    ),
    ("DeregisterEndpoint", pb.DeregisterEndpointRequest(prefix="x", node="a"), "INVALID_ARGUMENT", "prefix: 'x'"),
]


async def test_statuses_name_the_field(start: Any) -> None:
    one = await start()
    for method, request, code, message in STATUSES:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(one.stub, method)(request)
        assert (method, refused.value.code().name) == (method, code)
        assert message in str(refused.value.details())


async def test_reserved_identities_are_served_and_filters_apply(start: Any) -> None:
    one = await start()
    answer = await one.stub.Allocate(pb.AllocateRequest(labels=["reserved:init"], node="a"))
    assert (answer.identity.id, answer.created) == (5, False)
    assert (await one.stub.Get(pb.GetRequest(id=6))).identity.labels == ["reserved:remote-node"]
    await one.stub.Release(pb.ReleaseRequest(id=5, node="a"))
    number = await one.allocate(["k8s:app=web", "k8s:tier=front"], "a")
    other = await one.allocate(["k8s:app=db", "k8s:tier=back"], "a")

    async def listed(*labels: str) -> list[int]:
        return [identity.id async for identity in one.stub.List(pb.ListRequest(labels=labels))]

    assert await listed("app=web") == [number]
    assert await listed("k8s:app=web", "k8s:tier=back") == []
    everything = await listed()
    assert everything[:3] == [1, 2, 3]
    assert {number, other} <= set(everything)


async def test_changes_beyond_the_bound_are_refused(start: Any) -> None:
    one = await start(max_changes=4)
    results = await asyncio.gather(
        *(one.allocate([f"k8s:app={index}"], "a") for index in range(60)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert refused
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refused) < 60
