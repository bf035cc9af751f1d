"""A large cluster on one machine: simulated nodes around one real agent, one identity service and one relay.

1,000 nodes with 50 pods each are told to the identity service (real etcd) as their agents would; the real agent has
20,000 Services besides; every simulated node pushes flows to the relay. Then 50 pods a second are replaced. Keys:

    propagation_p50_ms, _p99_ms   from a node telling of a pod until the real node's kernel map has it
    answered_p50_ms, _p99_ms      of that, until the identity service has it in etcd and says so
    looked_p99_ms                 how long nobody looked into the map: what the figures above may be too high by
    refused                       calls that the identity service answered UNAVAILABLE; they are made again
    join_s                        all nodes at once: leases, references, addresses
    agent_load_s                  the real agent, restarted into the full cluster, until it enforces
    identity_, agent_, relay_, etcd_ rss_mb and cpu (cores during the churn)
    followers_, pushers_, bench_ cpu                        the same of what simulates: it is on the same cores

`--quick` takes a tenth of everything. What limits larger clusters, and the way past it: docs/scale.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import yaml

from bench._scale_nodes import SimulatedNodes, running, stub_of
from services.agent.abi.ipcache import IpcacheKey
from services.agent.datapath.maps import PinnedMap
from services.common import tls
from tests.integration.agent.cluster import Cluster

NODES, PODS_PER_NODE, SERVICES = 1_000, 50, 20_000
WATCHERS = 100
"""Simulated agents that follow the identity service; the rest only tell it. A thousand do not fit on this machine."""
PER_SECOND, SECONDS = 50, 60.0
KEEP_ALIVE_SECONDS = 15.0
PER_FILE = 250


class Machine:
    """What the processes take."""

    def __init__(self, ours: Mapping[str, int], simulated: Mapping[str, int]) -> None:
        self._ours, self._pids = ours, {**ours, **simulated}
        self._before, self._at = self._cpu(), time.monotonic()

    def _cpu(self) -> dict[str, float]:
        found = {}
        for name, pid in self._pids.items():
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                fields = file.read().rpartition(")")[2].split()
            found[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return found

    def figures(self) -> dict[str, float]:
        """Cores since the beginning, and resident memory now."""
        spent, found = time.monotonic() - self._at, {}
        for name, seconds in self._cpu().items():
            found[f"{name}_cpu"] = round((seconds - self._before[name]) / spent, 3)
            if name not in self._ours:
                continue
            with open(f"/proc/{self._pids[name]}/statm", encoding="ascii") as file:
                found[f"{name}_rss_mb"] = round(int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6, 1)
        return found


def write_services(cluster: Cluster, count: int) -> None:
    """Services with two endpoints each, as the API server would have them, some hundred per file."""
    for first in range(0, count, PER_FILE):
        documents: list[Any] = []
        for number in range(first, min(first + PER_FILE, count)):
            name, ports = f"service-{number}", [{"name": "http", "port": 80, "protocol": "TCP"}]
            spec = {"clusterIP": f"10.{200 + number // 65536}.{number // 256 % 256}.{number % 256}", "ports": ports}
            endpoints = [{"addresses": [f"10.{100 + number % 4}.{number % 250}.{n}"]} for n in (1, 2)]
            labels = {"kubernetes.io/service-name": name}
            documents.append({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
            documents.append(
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {"name": name, "labels": labels},
                    "addressType": "IPv4",
                    "ports": ports,
                    "endpoints": endpoints,
                }
            )
        text = yaml.dump_all(documents, Dumper=yaml.CSafeDumper)
        (cluster.objects / f"services-{first}.yaml").write_text(text, encoding="utf-8")


def key_of(prefix: str) -> bytes:
    """An IPv4 host prefix as a key of the address table."""
    key = IpcacheKey(prefixlen=128)
    key.address[:] = b"\0" * 10 + b"\xff\xff" + bytes(int(part) for part in prefix.partition("/")[0].split("."))
    return bytes(key)


class Arrivals:
    """Watches the real node's map for pods that were told of."""

    def __init__(self, ipcache: PinnedMap) -> None:
        self._ipcache = ipcache
        self._waiting: dict[bytes, tuple[int, float]] = {}
        self.seconds: list[float] = []
        self.answered: list[float] = []
        self.gaps: list[float] = []

    def expect(self, prefix: str, identity: int, begun: float) -> None:
        """From now on it may come."""
        self._waiting[key_of(prefix)] = identity, begun

    async def run(self) -> None:
        """Look every millisecond or so, until cancelled."""
        looked = time.perf_counter()
        while True:
            self.gaps.append(time.perf_counter() - looked)
            looked = time.perf_counter()
            for key, (identity, begun) in list(self._waiting.items()):
                value = self._ipcache.lookup(key)
                if value is not None and int.from_bytes(value[:4], "little") == identity:
                    self.seconds.append(time.perf_counter() - begun)
                    del self._waiting[key]
            await asyncio.sleep(0.001)

    @property
    def missing(self) -> int:
        """Told of and not there."""
        return len(self._waiting)


async def churn(nodes: SimulatedNodes, arrivals: Arrivals, seconds: float) -> float:
    """Replace PER_SECOND pods a second; how many it came to."""
    begun, number = time.perf_counter(), 0
    pending: set[asyncio.Task[None]] = set()

    async def one(index: int) -> None:
        arrivals.answered.append(await nodes.replace(index, arrivals.expect))

    while (now := time.perf_counter() - begun) < seconds:
        while number < now * PER_SECOND:
            task = asyncio.create_task(one(number))
            pending.add(task)
            task.add_done_callback(pending.discard)
            number += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*pending)
    return number / (time.perf_counter() - begun)


@contextlib.asynccontextmanager
async def kept_alive(nodes: SimulatedNodes) -> AsyncIterator[None]:
    """The nodes' leases while the context is open."""

    async def run() -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            await nodes.keep_alive()

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def start_relay(cluster: Cluster, target: str) -> int:
    """A relay on a unix socket; its process number."""
    words = ("--insecure", "--listen", target, "--log-level", "warning", "--capacity", "1000000")
    process = await cluster.spawn(sys.executable, "-m", "services.relay", *words, log="relay.log")
    return process.pid


def say(text: str) -> None:
    """Progress, beside the figures."""
    print(text, file=sys.stderr, flush=True)


async def measure(quick: bool) -> dict[str, Any]:
    """The whole bench."""
    share = 10 if quick else 1
    sizes = {"ipcache_max": 131_072, "ct_max": 16_384}
    async with Cluster(nodes=1, **sizes) as cluster, contextlib.AsyncExitStack() as stack:
        relay_target = f"unix://{cluster.root / 'relay.sock'}"
        relay = await start_relay(cluster, relay_target)
        cluster.options["relay_target"] = relay_target
        identity_target = f"unix://{cluster.root / 'identity.sock'}"
        channel = await stack.enter_async_context(tls.channel(identity_target, None, "identity"))
        nodes = SimulatedNodes(stub_of(channel), NODES // share, PODS_PER_NODE)
        begun = time.perf_counter()
        await nodes.keep_alive()
        await stack.enter_async_context(kept_alive(nodes))  # joining may take longer than a lease lasts
        await nodes.join()
        join = time.perf_counter() - begun
        say(f"{nodes.nodes} nodes with {nodes.nodes * PODS_PER_NODE} pods joined in {join:.1f} s")
        await asyncio.to_thread(write_services, cluster, SERVICES // share)
        load = await restart(cluster)
        say(f"the agent enforces after {load:.1f} s")
        followers = await stack.enter_async_context(running("follow", identity_target, WATCHERS // share))
        pushers = await stack.enter_async_context(running("push", relay_target, nodes.nodes))
        await asyncio.sleep(10 / share + 2)  # newcomers have been served
        agent = cluster.nodes[0].process
        assert agent is not None
        ours = {"identity": cluster.identity.pid, "agent": agent.pid, "relay": relay, "etcd": cluster.etcd_pid}
        machine = Machine(ours, {"followers": followers, "pushers": pushers, "bench": os.getpid()})
        with PinnedMap(cluster.pins / "node1" / "maps" / "ipcache") as ipcache:
            arrivals = Arrivals(ipcache)
            watching = asyncio.create_task(arrivals.run())
            rate = await churn(nodes, arrivals, SECONDS / share)
            figures = machine.figures()
            await settled(arrivals)
            watching.cancel()
        status = await cluster.status(cluster.nodes[0])
        return {
            "bench": "scale",
            "nodes": nodes.nodes,
            "pods": nodes.nodes * PODS_PER_NODE,
            "services": status.services,
            "watchers": WATCHERS // share,
            "changed_per_s": round(rate, 1),
            "propagation_p50_ms": milliseconds(arrivals.seconds, 0.5),
            "propagation_p99_ms": milliseconds(arrivals.seconds, 0.99),
            "answered_p50_ms": milliseconds(arrivals.answered, 0.5),
            "answered_p99_ms": milliseconds(arrivals.answered, 0.99),
            "looked_p99_ms": milliseconds(arrivals.gaps, 0.99),
            "propagation_max_ms": milliseconds(arrivals.seconds, 1.0),
            "not_arrived": arrivals.missing,
            "refused": nodes.refused,
            "join_s": round(join, 1),
            "agent_load_s": round(load, 1),
            **figures,
        }


async def restart(cluster: Cluster) -> float:
    """Start the agent again, into everything that is there; seconds until it enforces."""
    node = cluster.nodes[0]
    await cluster.kill_agent(node, signal.SIGKILL)
    begun = time.perf_counter()
    await cluster.start_agent(node)
    await cluster.ready(node)
    return time.perf_counter() - begun


async def settled(arrivals: Arrivals, seconds: float = 10.0) -> None:
    """Until everything has arrived, or long enough."""
    deadline = time.monotonic() + seconds
    while arrivals.missing and time.monotonic() < deadline:  # noqa: ASYNC110  a map cannot tell of itself
        await asyncio.sleep(0.05)


def milliseconds(values: list[float], share: float) -> float:
    """A percentile of seconds."""
    ordered = sorted(values) or [statistics.nan]
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3, 1)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    print(json.dumps(asyncio.run(measure(parser.parse_args().quick))))


if __name__ == "__main__":
    main()
