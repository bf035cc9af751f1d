"""Simulated nodes for `bench/scale.py`: what agents of other nodes do to the identity service and to the relay.

Each has a lease, references to its pods' identities, its pods' addresses, and a push stream of flows; some of them
follow the identity service as agents do. Run as a process of their own where they would disturb what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing.connection
import random
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
import uvloop

from services.common import tls
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc
from services.common.pb.ingest.v1 import ingest_pb2 as ingest
from services.common.pb.ingest.v1 import ingest_pb2_grpc

AT_ONCE = 48
RETRY_SECONDS = 60.0
WORKLOADS = 2_000
"""Distinct label sets in the cluster."""
KINDS_PER_NODE = 10
"""Of these on one node: the pods of a node are replicas of ten workloads."""
FLOWS_PER_BATCH = 50


def labels(workload: int) -> list[str]:
    """A label set as a pod has it."""
    return [
        f"k8s:app=workload-{workload}",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
        f"k8s:io.kubernetes.pod.namespace=team-{workload % 50}",
        f"k8s:tier={workload % 7}",
    ]


def workloads(node: int) -> list[int]:
    """Those that a node runs."""
    return [(node * KINDS_PER_NODE + kind) % WORKLOADS for kind in range(KINDS_PER_NODE)]


def address(node: int, pod: int) -> str:
    """A pod's prefix."""
    return f"10.{100 + node // 256}.{node % 256}.{pod + 1}/32"


def stub_of(channel: grpc.aio.Channel) -> Any:
    """The identity service's stub."""
    return identity_pb2_grpc.IdentityServiceStub(channel)  # type: ignore[no-untyped-call]


async def spread(work: Iterable[Callable[[], Awaitable[object]]], at_once: int = AT_ONCE) -> None:
    """Run calls, so many at once."""
    waiting = iter(work)

    async def one() -> None:
        for call in waiting:
            await call()

    await asyncio.gather(*(one() for _ in range(at_once)))


class SimulatedNodes:
    """The nodes' side of the identity service. `pods`: on each of them."""

    def __init__(self, stub: Any, nodes: int, pods: int) -> None:
        self._stub, self.nodes, self.pods = stub, nodes, pods
        self.identities: dict[int, int] = {}
        self._free: dict[int, list[int]] = {}
        self._used = [list(range(pods)) for _ in range(nodes)]
        self._random = random.Random(7)
        self.refused = 0
        """Calls that were answered UNAVAILABLE and made again, as agents do."""

    async def _call(self, name: str, request: Any) -> Any:
        """A call, again after a pause while the service or its etcd is too busy; the time counts."""
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return await getattr(self._stub, name)(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise
                self.refused += 1
                await asyncio.sleep(0.2)

    async def join(self) -> None:
        """References and addresses, once there are leases: as a thousand agents bring them at their start."""
        await spread(lambda n=n, w=w: self._allocate(n, w) for n in range(self.nodes) for w in workloads(n))
        await spread(lambda n=n, p=p: self._register(n, p, p) for n in range(self.nodes) for p in range(self.pods))

    async def keep_alive(self) -> None:
        """Once for every node."""
        requests = (pb.KeepAliveRequest(node=f"sim{number}") for number in range(self.nodes))
        await spread(lambda r=request: self._call("KeepAlive", r) for request in requests)

    async def _allocate(self, node: int, workload: int) -> None:
        request = pb.AllocateRequest(labels=labels(workload), node=f"sim{node}")
        self.identities[workload] = (await self._call("Allocate", request)).identity.id

    def identity_of(self, node: int, which: int) -> int:
        """The identity that a node's pod has."""
        return self.identities[workloads(node)[which % KINDS_PER_NODE]]

    async def _register(self, node: int, pod: int, which: int) -> None:
        endpoint = pb.Endpoint(
            prefix=address(node, pod),
            identity=self.identity_of(node, which),
            node=f"sim{node}",
            tunnel_endpoint=f"172.31.{node // 250}.{node % 250 + 1}",
            namespace="default",
            pod=f"pod-{node}-{pod}",
        )
        await self._call("RegisterEndpoint", pb.RegisterEndpointRequest(endpoint=endpoint))

    async def replace(self, number: int, told: Callable[[str, int, float], None]) -> float:
        """One pod goes, another comes with an address that nobody had. `told` hears its prefix, its identity and when
        the identity service is asked; the seconds until that answered."""
        node = self._random.randrange(self.nodes)
        gone = self._used[node].pop(0)
        gone_request = pb.DeregisterEndpointRequest(prefix=address(node, gone), node=f"sim{node}")
        await self._call("DeregisterEndpoint", gone_request)
        pod = (self._used[node][-1] + 1) % 250
        self._used[node].append(pod)
        begun = time.perf_counter()
        told(address(node, pod), self.identity_of(node, number), begun)
        await self._register(node, pod, number)
        return time.perf_counter() - begun


async def follow(target: str, count: int) -> None:
    """So many agents' watches: everything that they are sent is taken, nothing is kept. Forever."""
    method = "/ciliate.identity.v1.IdentityService/Watch"

    async def one(number: int) -> None:
        async with tls.channel(target, None, "identity") as channel:
            # Bytes as they come: what is measured is the service and the agent, not a hundred decoders.
            watch = channel.unary_stream(method, request_serializer=pb.WatchRequest.SerializeToString)
            async for _ in watch(pb.WatchRequest(node=f"sim{number}")):
                pass

    await asyncio.gather(*(one(number) for number in range(count)))


def _batch(sequence: int, node: int) -> ingest.PushRequest:
    """A second's flows of a node."""
    rows = FLOWS_PER_BATCH
    batch = ingest.Batch(sequence=sequence, rows=rows)
    if sequence == 1:
        for number in (1, 2):
            ip = b"\0" * 10 + b"\xff\xff" + bytes((10, 100 + node // 256, node % 256, number))
            party = ingest.Party(address=ip, identity=300 + number, namespace="default", pod=f"pod-{node}-{number}")
            batch.entries.add(number=number, party=party)
    now = time.time_ns()
    columns = {
        ingest.TIME_NS: struct.pack(f"<{rows}q", *(now + row for row in range(rows))),
        ingest.SOURCE: struct.pack("<I", 1) * rows,
        ingest.DESTINATION: struct.pack("<I", 2) * rows,
        ingest.SOURCE_PORT: struct.pack(f"<{rows}H", *range(40_000, 40_000 + rows)),
        ingest.DESTINATION_PORT: struct.pack("<H", 80) * rows,
        ingest.KIND: b"\x01" * rows,
        ingest.VERDICT: b"\x01" * rows,
        ingest.DIRECTION: b"\x01" * rows,
        ingest.PROTOCOL: b"\x06" * rows,
    }
    for number, values in columns.items():
        batch.columns.add(id=number, values=values)
    return ingest.PushRequest(batch=batch)


async def push(target: str, count: int) -> None:
    """So many nodes' flows: a batch a second each, at moments of their own. Forever."""

    async def one(node: int) -> None:
        async with tls.channel(target, None, "relay") as channel:
            call: Any = ingest_pb2_grpc.FlowIngestStub(channel).Push()  # type: ignore[no-untyped-call]
            await call.write(
                ingest.PushRequest(hello=ingest.Hello(node=f"sim{node}", cluster="default", instance=node + 1))
            )
            await call.read()
            await asyncio.sleep(node / count)
            for sequence in range(1, 1 << 30):
                await call.write(_batch(sequence, node))
                await call.read()
                await asyncio.sleep(1.0)

    await asyncio.gather(*(one(node) for node in range(count)))


def child(what: str, target: str, count: int, pipe: multiprocessing.connection.Connection) -> None:
    """Entry point of a process of simulated nodes; ends with its parent."""
    work = {"follow": follow, "push": push}[what]
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_until_closed(work(target, count), pipe))


async def _until_closed(work: Any, pipe: multiprocessing.connection.Connection) -> None:
    task = asyncio.ensure_future(work)
    with contextlib.suppress(EOFError):
        await asyncio.to_thread(pipe.recv)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def running(what: str, target: str, count: int) -> AsyncIterator[int]:
    """A process of simulated nodes while the context is open; its number."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(what, target, count, theirs), daemon=True)
    process.start()
    theirs.close()
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        ours.close()
        await asyncio.to_thread(process.join, 10)
        if process.is_alive():
            process.kill()
