"""How fast identities are made, how soon everybody knows, how long a newcomer loads.

Real parts, as processes of their own: etcd, one replica, the watchers (one connection each). This process makes the
requests. Prints one JSON object last:

    new_per_s, new_p99_ms    new label sets allocated by CONCURRENCY callers as fast as they can
    fanout_p99_ms            from before the request until a watcher has the identity; WATCHERS watchers, steady rate
    load_60k_s               a new watcher, from connecting to in-sync, with 60 k identities there

`--quick` takes a tenth of everything: for trying the bench itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from services.common import tls
from services.common.etcd_server import EtcdServer
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc

CONCURRENCY = 24
WATCHERS = 500
IDENTITIES = 60_000
NEW_SECONDS = 15.0
FANOUT_RATE = 20
"""New identities per second while the fan-out is measured: a cluster rolling out several workloads at once."""
FANOUT_COUNT = 300


def labels(index: int) -> list[str]:
    """A label set as a pod has it: seven labels, about 250 bytes."""
    return [
        f"k8s:app=bench-{index}",
        "k8s:app.kubernetes.io/part-of=shop",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=production",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
        "k8s:io.kubernetes.pod.namespace=production",
        f"k8s:tier={index % 7}",
    ]


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def replica(etcd: str, port: int) -> AsyncIterator[int]:
    """A replica as a process; yields its pid."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.identity", "--insecure", "--listen", f"127.0.0.1:{port}"),
        *("--etcd-endpoints", etcd, "--log-level", "warning"),
    )
    try:
        yield process.pid
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGTERM)
        await process.wait()


def stub_of(channel: grpc.aio.Channel) -> Any:
    """The service's stub."""
    return identity_pb2_grpc.IdentityServiceStub(channel)  # type: ignore[no-untyped-call]


async def wait_ready(stub: Any) -> None:
    """Until the replica has read etcd."""
    async with asyncio.timeout(60):
        while True:
            try:
                await stub.KeepAlive(pb.KeepAliveRequest(node="bench"))
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)


async def allocate(stub: Any, first: int, seconds: float, most: int) -> tuple[int, float, list[float]]:
    """Allocate `labels(first)`, ... with CONCURRENCY callers; (count, seconds taken, latency of each)."""
    latencies: list[float] = []
    start = time.perf_counter()
    numbers = iter(range(first, first + most))

    async def caller() -> None:
        for index in numbers:
            before = time.perf_counter()
            if before - start > seconds:
                return
            await stub.Allocate(pb.AllocateRequest(labels=labels(index), node="bench"))
            latencies.append(time.perf_counter() - before)

    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return len(latencies), time.perf_counter() - start, latencies


def watchers(target: str, count: int, pipe: multiprocessing.connection.Connection) -> None:
    """Child process: `count` watchers; says "ready", then sends (number, arrival) of each identity at each one."""
    uvloop.run(_watchers(target, count, pipe))


async def _watchers(target: str, count: int, pipe: multiprocessing.connection.Connection) -> None:
    arrivals: list[tuple[int, float]] = []
    in_sync = 0
    everybody = asyncio.Event()

    async def watcher() -> None:
        nonlocal in_sync
        async with tls.channel(target, None, "identity") as channel:
            live = False
            async for message in stub_of(channel).Watch(pb.WatchRequest(node="bench")):
                now = time.perf_counter()
                if message.in_sync:
                    live, in_sync = True, in_sync + 1
                    if in_sync == count:
                        everybody.set()
                elif live:
                    arrivals.extend((identity.id, now) for identity in message.identities)

    tasks = [asyncio.create_task(watcher()) for _ in range(count)]
    await everybody.wait()
    pipe.send("ready")
    while await asyncio.to_thread(pipe.recv) == "how far":
        pipe.send(len(arrivals))
    pipe.send(arrivals)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def measure_fanout(stub: Any, target: str, count: int, events: int) -> list[float]:
    """Seconds from asking for a new identity until each watcher has it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=watchers, args=(target, count, theirs), daemon=True)
    child.start()
    try:
        assert await asyncio.to_thread(ours.recv) == "ready"
        sent: dict[int, float] = {}
        for index in range(events):
            await asyncio.sleep(1 / FANOUT_RATE)
            before = time.perf_counter()
            answer = await stub.Allocate(pb.AllocateRequest(labels=labels(10_000_000 + index), node="bench"))
            sent[answer.identity.id] = before
        async with asyncio.timeout(60):
            while True:
                ours.send("how far")
                if await asyncio.to_thread(ours.recv) >= count * events:
                    break
                await asyncio.sleep(0.1)
        ours.send("enough")
        arrivals = await asyncio.to_thread(ours.recv)
        # perf_counter is CLOCK_MONOTONIC on Linux: one clock for both processes.
        return [arrival - sent[number] for number, arrival in arrivals if number in sent]
    finally:
        child.join(10)
        if child.is_alive():
            child.kill()


async def measure_load(target: str) -> tuple[float, int]:
    """(seconds from connecting to in-sync, identities received) of a new watcher."""
    start, count = time.perf_counter(), 0
    async with tls.channel(target, None, "identity") as channel:
        async for message in stub_of(channel).Watch(pb.WatchRequest(node="bench")):
            count += len(message.identities)
            if message.in_sync:
                break
    return time.perf_counter() - start, count


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values are."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


async def measure(quick: bool) -> dict[str, float]:
    """The whole bench."""
    share = 10 if quick else 1
    with tempfile.TemporaryDirectory(prefix="ciliate-bench-") as directory:
        async with EtcdServer(Path(directory)) as etcd:
            port = free_port()
            target = f"127.0.0.1:{port}"
            async with replica(etcd.endpoint, port) as pid, tls.channel(target, None, "identity") as channel:
                stub = stub_of(channel)
                await wait_ready(stub)
                await allocate(stub, 20_000_000, 1.0, 500)  # first calls warm both sides up
                count, seconds, latencies = await allocate(stub, 0, NEW_SECONDS / share, IDENTITIES // share)
                print(f"new: {count / seconds:.0f}/s", file=sys.stderr)
                fanout = await measure_fanout(stub, target, WATCHERS // share, FANOUT_COUNT // share)
                print(f"fan-out: p99 {percentile(fanout, 0.99) * 1e3:.1f} ms", file=sys.stderr)
                await allocate(stub, count, 240, IDENTITIES // share - count)
                loads = [await measure_load(target) for _ in range(3)]
                rss = resident_mb(pid)
            port = free_port()
            before = time.perf_counter()
            async with replica(etcd.endpoint, port), tls.channel(f"127.0.0.1:{port}", None, "identity") as channel:
                await wait_ready(stub_of(channel))
                ready = time.perf_counter() - before
    return {
        "new_per_s": round(count / seconds, 1),
        "new_p50_ms": round(statistics.median(latencies) * 1e3, 2),
        "new_p99_ms": round(percentile(latencies, 0.99) * 1e3, 2),
        "fanout_p50_ms": round(statistics.median(fanout) * 1e3, 2),
        "fanout_p99_ms": round(percentile(fanout, 0.99) * 1e3, 2),
        "fanout_watchers": WATCHERS // share,
        "load_60k_s": round(max(seconds for seconds, _ in loads), 3),
        "load_identities": loads[0][1],
        "replica_ready_s": round(ready, 2),
        "replica_rss_mb": round(rss, 1),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    print(json.dumps(uvloop.run(measure(parser.parse_args().quick))))


if __name__ == "__main__":
    main()
