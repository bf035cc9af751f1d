"""The agent: how soon a restarted one enforces, how much memory it takes, how long a pod waits for its interface.

One node with a real identity service and etcd. 100 pods are added one by one, removed, and added all at once, each by
the CNI plugin as a process, as a runtime does it; then the agent is killed and started again.

    cni_add_p50_ms      an ADD, all pods at once
    cni_floor_p50_ms    as many interpreters at once that do nothing: what no plugin in Python can be quicker than
    cni_start_p50_ms    as many plugins at once that ask nobody: the floor, and our file
    *_cpu_ms            processor time of one call: of the bare interpreter, of the plugin, of the agent
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.integration.agent.cluster import PLUGIN, Cluster, Node, Pod, network_policy, sh

PODS = int(os.environ.get("BENCH_PODS", "100"))
RESTARTS = 3


async def main() -> dict[str, Any]:
    """The figures."""
    as_installed()
    async with Cluster(nodes=1) as cluster:
        node = cluster.nodes[0]
        cluster.apply(network_policy("servers", "app3", "client", 80))
        pods = [make(cluster, number) for number in range(PODS)]
        await known(cluster)
        one_by_one = [await add(cluster, pod) for pod in pods[:20]]
        for pod in pods[:20]:
            await cluster.cni("DEL", pod)
        say("all at once")
        floor, floor_cpu = await at_once_alone("-c", "import posix; posix._exit(0)")
        start, start_cpu = await at_once_alone(PLUGIN, "--version")
        before, began = agent_cpu(node), time.monotonic()
        at_once = await asyncio.gather(*(add(cluster, pod) for pod in pods))
        wall, spent = time.monotonic() - began, agent_cpu(node) - before
        inside = [await direct(cluster, pod) for pod in pods[:20]]
        say("restarts")
        first = await cluster.status(node)
        ready = []
        for _ in range(RESTARTS):
            await cluster.kill_agent(node, signal.SIGKILL)
            await cluster.start_agent(node)
            status = await cluster.ready(node)
            assert status.endpoints == PODS, status.endpoints
            ready.append(status.ready_after_seconds)
        await asyncio.sleep(1)
        after = await cluster.status(node)
        return {
            "bench": "agent",
            "ready_s": round(statistics.median(ready), 2),
            "rss_mb": round(max(first.rss_bytes, after.rss_bytes) / 1e6, 1),
            "cni_add_p50_ms": milliseconds(at_once, 0.5),
            "cni_floor_p50_ms": milliseconds(floor, 0.5),
            "cni_start_p50_ms": milliseconds(start, 0.5),
            "cni_add_p99_ms": milliseconds(at_once, 0.99),
            "interpreter_cpu_ms": round(floor_cpu * 1000, 1),
            "plugin_cpu_ms": round(start_cpu * 1000, 1),
            "agent_cpu_ms": round(spent / PODS * 1000, 1),
            "cni_add_wall_ms": round(wall * 1000, 1),
            "cni_add_one_by_one_p50_ms": milliseconds(one_by_one, 0.5),
            "agent_add_p50_ms": milliseconds(inside, 0.5),
            "plugin_start_p50_ms": milliseconds([await alone(PLUGIN, "--version") for _ in range(20)], 0.5),
            "pods": PODS,
        }


def as_installed() -> None:
    """An installed package has its bytecode: the first start writes it, whatever this shell thinks of that."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "ciliate-bench-bytecode")


def make(cluster: Cluster, number: int) -> Pod:
    """A pod's object and network namespace, as they are there before a runtime calls the plugin."""
    pod = Pod(f"p{number}", cluster.nodes[0], f"{cluster.prefix}p{number}", {"app": f"app{number % 10}"})
    sh(f"ip netns add {pod.netns}")
    cluster.pods[pod.name] = pod
    cluster.pod_object(pod.name, pod.node, pod.labels)
    return pod


async def known(cluster: Cluster) -> None:
    """Let the agent read the objects first."""
    await asyncio.sleep(1)
    await cluster.status(cluster.nodes[0])


async def add(cluster: Cluster, pod: Pod) -> float:
    """Seconds of one ADD by the plugin."""
    began = time.monotonic()
    status, answer = await cluster.cni("ADD", pod)
    assert status == 0, answer
    return time.monotonic() - began


async def direct(cluster: Cluster, pod: Pod) -> float:
    """Seconds of one DEL and ADD on the agent's socket, of which the ADD is told."""
    await call(pod, "DEL")
    began = time.monotonic()
    answer = await call(pod, "ADD")
    assert answer.startswith(b"0 "), answer
    return time.monotonic() - began


async def call(pod: Pod, command: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(pod.node.run_dir / "cni.sock"))
    config, environment = Cluster.cni_call(command, pod)
    variables = "".join(f"{name}={value}\0" for name, value in environment.items()).encode()
    data = json.dumps(config).encode()
    writer.write(b"CNI %d %d\n" % (len(variables), len(data)) + variables + data)
    answer = await reader.read()
    writer.close()
    return answer


async def alone(*words: str) -> float:
    """Seconds of one interpreter, started as the plugin is."""
    began = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-IS", *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    await child.communicate()
    return time.monotonic() - began


async def at_once_alone(*words: str) -> tuple[list[float], float]:
    """(seconds of each, processor seconds of one) of as many interpreters at once as there are pods."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = await asyncio.gather(*(alone(*words) for _ in range(PODS)))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / PODS


def agent_cpu(node: Node) -> float:
    """Processor seconds that the agent has taken so far."""
    assert node.process is not None
    fields = Path(f"/proc/{node.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def milliseconds(seconds: list[float], quantile: float) -> float:
    """A quantile in ms."""
    ordered = sorted(seconds)
    return round(ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1000, 1)


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
