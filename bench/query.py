"""How fast stored flows answer: ten million of them, in memory and on disk.

`filter_10m_ms`: the slowest of several requests that look at every flow in memory (by pod, label, address, verdict and
port, HTTP path) and find few; each is the median of its rounds, first answer's work and rendering included.
`disk_filter_10m_ms`: the slowest of the same by another process's reader, from Parquet files alone.
`sql_10m_ms`: an aggregation over all of them with DuckDB.
`bytes_per_flow`, `disk_bytes_per_flow`: memory of full segments, size of the files.
`follow_p99_ms`: from a flow's arrival in a store of that size to a follower that has it, over gRPC with mutual TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from services.cli.history import run as run_sql
from services.common.authority import issue, make_authority
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.runner import GrpcServer
from services.common.tls import channel, server_credentials
from services.flows.columns import DTYPES, Columns, Kind
from services.flows.entries import Decision, HttpRequest, NodeRef, Party, PolicyRef, ServiceRef
from services.flows.filters import Filters
from services.flows.follow import Archive, NoArchive, past
from services.flows.history.history import History
from services.flows.observer import Observer
from services.flows.render import Renderer
from services.flows.select import Window
from services.flows.store import FlowStore

NODES, PODS, POLICIES, SERVICES, PATHS = 100, 5_000, 300, 500, 2_000
BATCH = 8192
SPAN_NS = 3600 * 10**9
SQL = "SELECT source_namespace, destination_workload, verdict, count(*), sum(bytes) FROM flows GROUP BY ALL"


class Cluster:
    """What a mid-sized cluster's flows look like: few names, many ports, time going on."""

    def __init__(self, store: FlowStore, rows: int) -> None:
        self.store, self._step = store, SPAN_NS // rows
        self._random = np.random.default_rng(1)
        self._time = time.time_ns() - SPAN_NS
        names = store.dictionaries
        self._nodes = [store.node(NodeRef(f"node{number}")) for number in range(NODES)]
        self._parties = np.array([names.parties.intern(self._pod(number)) for number in range(PODS)])
        self._decisions = np.array(
            [names.decisions.intern(self._decision(number)) for number in range(POLICIES)] + [0] * POLICIES
        )
        self._services = np.array([names.services.intern(ServiceRef("ns1", f"svc-{n}")) for n in range(SERVICES)] + [0])
        paths = range(PATHS)
        self._requests = np.array([names.requests.intern(HttpRequest("GET", f"/api/v1/items/{n}", 11)) for n in paths])

    @staticmethod
    def _pod(number: int) -> Party:
        address = bytes(10) + b"\xff\xff\x0a" + number.to_bytes(3, "big")
        app, namespace = number // 10, f"ns{number % 40}"
        labels = (f"k8s:app=app-{app}", f"k8s:io.kubernetes.pod.namespace={namespace}", "k8s:tier=backend")
        name = f"app-{app}"
        return Party(address, 1000 + app, labels, namespace, f"{name}-{number}", "Deployment", name, 0, "default")

    @staticmethod
    def _decision(number: int) -> Decision:
        return Decision(True, (PolicyRef("CiliumNetworkPolicy", f"ns{number % 40}", f"policy-{number}", "", "spec"),))

    def batch(self) -> Columns:
        """One node's next rows."""
        choose, rows = self._random, BATCH
        kinds = choose.choice([Kind.NEW, Kind.DROP, Kind.CLOSE, Kind.HTTP], rows, p=[0.4, 0.05, 0.4, 0.15]).astype("u1")
        closed, http = kinds == Kind.CLOSE, kinds == Kind.HTTP
        times = self._time + np.arange(rows) * self._step
        self._time = int(times[-1]) + self._step
        found = {
            "time_ns": times,
            "source": choose.choice(self._parties, rows),
            "destination": choose.choice(self._parties[: PODS // 10], rows),
            "policy": choose.choice(self._decisions, rows),
            "service": choose.choice(self._services, rows),
            "http": np.where(http, choose.choice(self._requests, rows), 0),
            "source_port": choose.integers(32768, 61000, rows),
            "destination_port": choose.choice([80, 443, 53, 5432, 9090], rows),
            "kind": kinds,
            "verdict": np.where(kinds == Kind.DROP, flow_pb2.DROPPED, flow_pb2.FORWARDED),
            "direction": choose.integers(1, 3, rows),
            "protocol": np.full(rows, 6),
            "tcp_flags": np.full(rows, 2),
            "drop_reason": np.where(kinds == Kind.DROP, 133, 0),
            "policy_revision": np.full(rows, 300),
            "packets": np.where(closed, choose.integers(4, 2000, rows), 0),
            "reply_packets": np.where(closed, choose.integers(4, 2000, rows), 0),
            "bytes": np.where(closed, choose.integers(300, 1 << 22, rows), 0),
            "reply_bytes": np.where(closed, choose.integers(300, 1 << 22, rows), 0),
            "rtt_us": np.where(closed, choose.integers(50, 5000, rows), 0),
            "duration_us": np.where(closed, choose.integers(100, 1 << 28, rows), 0),
        }
        return {name: values.astype(DTYPES[name]) for name, values in found.items()}

    def append(self) -> None:
        """One more batch, of some node."""
        self.store.append(self.batch(), self._nodes[int(self._random.integers(NODES))])


QUERIES: dict[str, tuple[flow_pb2.FlowFilter, Window]] = {
    "pod that is not there": (flow_pb2.FlowFilter(source_pod=["ns1/none"]), Window()),
    "one pod's drops": (flow_pb2.FlowFilter(source_pod=["ns1/app-0-1"], verdict=[flow_pb2.DROPPED]), Window()),
    "label and port": (
        flow_pb2.FlowFilter(source_label=["app=app-400"], destination_port=["5432"], verdict=[flow_pb2.DROPPED]),
        Window(),
    ),
    "address": (flow_pb2.FlowFilter(source_ip=["10.0.19.0/30"], verdict=[flow_pb2.DROPPED]), Window()),
    "one path": (flow_pb2.FlowFilter(http_path=["^/api/v1/items/77$"], source_label=["app=app-3"]), Window()),
    "last 20 drops": (flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED]), Window(number=1)),
}


async def ask(store: FlowStore, archive: Archive, name: str) -> tuple[float, int]:
    """(seconds, answers) of one request, rendering included."""
    given, window = QUERIES[name]
    start = time.perf_counter()
    renderer, count = Renderer(store.dictionaries, "bench"), 0
    async for response in past(store, archive, renderer, Filters([given]), window):
        response.SerializeToString()
        count += 1
    return time.perf_counter() - start, count


async def all_queries(store: FlowStore, archive: Archive, rounds: int, where: str) -> float:
    """The slowest query's median, in milliseconds; prints each."""
    worst = 0.0
    for name in QUERIES:
        answers = [await ask(store, archive, name) for _ in range(rounds)]
        times = sorted(seconds * 1e3 for seconds, _ in answers)
        middle = statistics.median(times)
        print(f"{where}, {name}: {middle:.1f} ms ({times[0]:.1f} to {times[-1]:.1f}), {answers[0][1]} flows")
        worst = max(worst, middle)
    return worst


async def follow(store: FlowStore, cluster: Cluster, directory: Path, rounds: int) -> list[float]:
    """Milliseconds from each arrival to a follower that has it."""
    make_authority(directory)
    relay, client = issue(directory, "relay"), issue(directory, "client")
    observer = Observer(store, NodeRef("relay"), "bench", "bench")

    def register(server: Any) -> None:
        observer_pb2_grpc.add_ObserverServicer_to_server(observer, server)  # type: ignore[no-untyped-call]

    target = f"unix://{directory}/relay.sock"
    delays = []
    async with (
        GrpcServer([target], server_credentials(relay), register),
        channel(target, client, "relay") as there,
    ):
        stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
        few = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED], source_pod=["ns1/"])
        stream = stub.GetFlows(observer_pb2.GetFlowsRequest(follow=True, number=1, whitelist=[few]))
        await stream.read()
        arrived: asyncio.Queue[float] = asyncio.Queue()

        async def read() -> None:
            while await stream.read() is not grpc.aio.EOF:
                arrived.put_nowait(time.perf_counter())

        reader = asyncio.create_task(read())
        for _ in range(rounds):
            start = time.perf_counter()
            cluster.append()
            delays.append((await arrived.get() - start) * 1e3)
            await asyncio.sleep(0.02)  # the rest of the batch
            while not arrived.empty():
                arrived.get_nowait()
        reader.cancel()
    return sorted(delays)


async def measure(rows: int, rounds: int, directory: Path) -> dict[str, float]:
    """Everything; see the module's text."""
    store = FlowStore(rows + 2 * (rows // 16))
    cluster = Cluster(store, rows)
    history = History(directory / "flows", store, max_bytes=1 << 40, max_age_s=1e9)
    start = time.perf_counter()
    while store.end < rows:
        cluster.append()
    filled = time.perf_counter() - start
    sealed = list(store.segments)[:-1]
    memory = sum(values.strides[0] * segment.rows for segment in sealed for values in segment.columns.values())
    memory_per_flow = memory / sum(segment.rows for segment in sealed)
    print(f"{store.end:,} flows in {filled:.1f} s; {memory_per_flow:.1f} bytes each in memory")
    result = {"filter_10m_ms": await all_queries(store, NoArchive(), rounds, "memory")}
    start = time.perf_counter()
    await history.flush()
    spent = time.perf_counter() - start
    history.close()
    print(
        f"written to {history.figures.files} files in {spent:.1f} s, {history.figures.bytes / store.end:.1f} bytes each"
    )
    result |= {"bytes_per_flow": memory_per_flow, "disk_bytes_per_flow": history.figures.bytes / store.end}
    delays = await follow(store, cluster, directory, 300)
    result |= {"follow_p50_ms": statistics.median(delays), "follow_p99_ms": delays[int(len(delays) * 0.99)]}
    print(f"follower: p50 {result['follow_p50_ms']:.1f} ms, p99 {result['follow_p99_ms']:.1f} ms")
    fresh = FlowStore(1024)
    again = History(directory / "flows", fresh, max_bytes=1 << 40, max_age_s=1e9)
    first, _ = await ask(fresh, again, "pod that is not there")
    print(f"disk, the first reader, which learns the names: {first * 1e3:.0f} ms")
    result["disk_first_10m_ms"] = first * 1e3
    result["disk_filter_10m_ms"] = await all_queries(fresh, again, max(1, rounds // 2), "disk")
    again.close()
    start = time.perf_counter()
    groups = len(run_sql(directory / "flows", SQL)[1])
    result["sql_10m_ms"] = (time.perf_counter() - start) * 1e3
    print(f"SQL, {groups} groups of all flows: {result['sql_10m_ms']:.0f} ms")
    return result


def main() -> None:
    """Measure; print one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="flows in the store")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each request")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ciliate-bench-"))
    try:
        result = asyncio.run(measure(arguments.rows, arguments.rounds, directory))
    finally:
        shutil.rmtree(directory)
    print(json.dumps({name: round(value, 1) for name, value in result.items()} | {"rows": arguments.rows}))


if __name__ == "__main__":
    main()
