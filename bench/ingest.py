"""How fast flows go up, and whether every one is accounted for.

`decode_per_s`: records out of a kernel ring, through decoding and naming, into columns, on one core.
`end_to_end_per_s`: a kernel program fills the ring as fast as the pipeline lets it; pipeline and push client here, a
relay in a process of its own, gRPC with mutual TLS between them; counted when the relay has acknowledged.
`overload_unaccounted`: the same with the kernel writing at full speed: emitted - stored - counted lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from bench._kernel_events import KernelEvents
from services.agent.abi.events import EVENT_VERSION, FLOW_EVENT, HTTP_EVENT, NAME_EVENT
from services.agent.events import decode
from services.agent.events.clock import WallClock
from services.agent.events.enrich import Enricher
from services.agent.events.getters import PodRef
from services.agent.events.pipeline import CHUNK, FlowPipeline, PipelineConfig
from services.agent.events.reader import RingReader
from services.common.authority import issue, make_authority
from services.flows.dictionary import Dictionaries
from services.flows.entries import NearestRule, NodeRef, PolicyRef, ServiceRef

RING = 16 << 20
HTTP_RING = 1 << 20
PODS = 200


class Names:
    """A few hundred pods."""

    generation = 0

    def identity_labels(self, identity: int) -> tuple[str, ...]:
        return (f"k8s:app=app-{identity}", "k8s:io.kubernetes.pod.namespace=bench")

    def pod_at(self, address: bytes) -> PodRef | None:
        return PodRef("bench", f"pod-{address[15]}")

    def rule_policy(self, rule_id: int) -> PolicyRef | None:
        return PolicyRef("CiliumNetworkPolicy", "bench", f"policy-{rule_id}")

    def nearest(self, endpoint_id: int, direction: int, peer: int, protocol: int, port: int) -> NearestRule | None:
        return None

    def isolating(self, endpoint_id: int, direction: int) -> tuple[PolicyRef, ...]:
        return ()

    def service_ref(self, service_id: int) -> ServiceRef | None:
        return ServiceRef("bench", f"service-{service_id}")

    def divided(self) -> frozenset[int]:
        return frozenset()

    def part_at(self, identity: int, address: bytes) -> int:
        return identity


def template() -> Any:
    record = np.zeros(1, FLOW_EVENT)
    record["type"], record["version"], record["protocol"], record["direction"] = 1, EVENT_VERSION, 6, 1
    record["saddr"][0, 10:] = (255, 255, 10, 0, 0, 1)
    record["daddr"][0, 10:] = (255, 255, 10, 0, 0, 2)
    record["sport"], record["dport"], record["tcp_flags"], record["rule_id"] = 40_000, 80, 2, 900
    record["src_identity"], record["dst_identity"], record["match_type"] = 1001, 1002, 2
    return record


def mixed(records: Any) -> Any:
    """The same records between `PODS` pods with many ports, as a node sees them."""
    rows = np.arange(len(records))
    records["saddr"][:, 15] = rows % PODS
    records["daddr"][:, 15] = (rows * 7) % PODS
    records["src_identity"] = 1000 + rows % PODS % 50
    records["dst_identity"] = 1000 + (rows * 7) % PODS % 50
    records["rule_id"] = rows % 20
    records["sport"] = rows % 60_000
    return records


def decode_rate(kernel: KernelEvents, seconds: float) -> dict[str, float]:
    """Ring -> columns and dictionary numbers, in chunks as the pipeline takes them; only that is timed,
    by the processor time of this thread: per core, whatever else the machine does.
    """
    reader = RingReader.open(kernel.ring_fd, FLOW_EVENT)
    enricher, clock = Enricher(Dictionaries(), Names(), "default"), WallClock()
    spent = read_spent = 0.0
    count = 0
    emit_ns = 0.0
    while spent < seconds:
        emit_ns = kernel.emit(RING // 128 - 1)
        while True:
            start = time.thread_time()
            records = reader.read(CHUNK)
            read_spent += time.thread_time() - start
            if not len(records):
                break
            mixed(records)
            middle = time.thread_time()
            decode.connections(decode.readable(records, 1, 5), enricher, clock.convert)  # type: ignore[arg-type]
            spent += time.thread_time() - middle
            count += len(records)
    reader.close()
    return {
        "read_per_s": count / read_spent,
        "decode_per_s": count / (spent + read_spent),
        "emit_ns": emit_ns,
    }


def stored(metrics: str) -> tuple[int, int]:
    """(flows, events told lost) that ever came to the relay, by its own counters."""
    with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()

    def total(name: str) -> int:
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")))

    return total("ciliate_relay_flows_stored_total"), total("hubble_lost_events_total")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def end_to_end(directory: Path, seconds: float, overload: bool) -> dict[str, float]:
    """Kernel -> pipeline -> relay; see the module's text."""
    make_authority(directory)
    relay, agent = issue(directory, "relay"), issue(directory, "agent", "node1")
    metrics = f"127.0.0.1:{free_port()}"
    target = f"unix://{directory}/relay.sock"
    arguments = ["--listen", target, "--capacity", "1000000", "--metrics-address", metrics]
    arguments += ["--log-level", "warning", "--tls-ca", relay.ca, "--tls-cert", relay.cert, "--tls-key", relay.key]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.relay", *arguments)
    try:
        with (
            KernelEvents(FLOW_EVENT, RING) as kernel,
            KernelEvents(HTTP_EVENT, HTTP_RING) as http,
            KernelEvents(NAME_EVENT, HTTP_RING) as names,
        ):
            kernel.template(template())
            config = PipelineConfig(NodeRef("node1"), "bench", relay_target=target, tls=agent)
            rings = kernel.ring_fd, http.ring_fd, names.ring_fd
            pipeline = FlowPipeline(config, Names(), *rings, kernel, CollectorRegistry())
            task = asyncio.create_task(pipeline.run())
            await _until(lambda: pipeline.pusher is not None and pipeline.pusher.connected)
            figures = await _load(kernel, pipeline, seconds, overload)
            pipeline.count_losses()
            await _until(lambda: pipeline.buffer.empty)
            flows, lost = await asyncio.to_thread(stored, metrics)
            emitted = figures.pop("emitted")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            pipeline.close()
            figures["unaccounted"] = emitted - flows - lost
            figures["lost_share"] = lost / emitted
            return figures
    finally:
        process.terminate()
        await process.wait()


async def _until(condition: Any, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions on several objects
            await asyncio.sleep(0.002)


async def _load(kernel: KernelEvents, pipeline: FlowPipeline, seconds: float, overload: bool) -> dict[str, float]:
    """Emit for some seconds: as fast as the kernel can, or so that neither ring nor buffer overflow."""
    stop, emitted = threading.Event(), 0

    def produce() -> None:
        nonlocal emitted
        while not stop.is_set():
            if not overload:
                behind = emitted - (pipeline.pusher.acknowledged_rows if pipeline.pusher else 0)
                if behind > RING // 128 // 2:
                    time.sleep(0.0005)
                    continue
            kernel.emit(8192)
            emitted += 8192

    start = time.perf_counter()
    writer = threading.Thread(target=produce)
    writer.start()
    await asyncio.sleep(seconds)
    stop.set()
    await asyncio.to_thread(writer.join)
    pusher = pipeline.pusher
    assert pusher is not None
    await _until(lambda: pusher.acknowledged_rows + pipeline.buffer.dropped_rows + kernel.lost() >= emitted)
    spent = time.perf_counter() - start
    return {"per_s": pusher.acknowledged_rows / spent, "emitted": emitted}


def main() -> None:
    """Measure; print one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each part")
    seconds = parser.parse_args().seconds
    with KernelEvents(FLOW_EVENT, RING) as kernel:
        kernel.template(template())
        rates = decode_rate(kernel, seconds / 2)
    print(f"decode: {rates['decode_per_s']:,.0f}/s (copy out of the ring alone {rates['read_per_s']:,.0f}/s)")
    with tempfile.TemporaryDirectory() as directory:
        steady = asyncio.run(end_to_end(Path(directory), seconds, overload=False))
    print(f"kernel to relay: {steady['per_s']:,.0f}/s, unaccounted {steady['unaccounted']:.0f}")
    with tempfile.TemporaryDirectory() as directory:
        flooded = asyncio.run(end_to_end(Path(directory), seconds, overload=True))
    print(
        f"kernel at full speed: {flooded['per_s']:,.0f}/s stored, {flooded['lost_share']:.1%} lost and counted, "
        f"unaccounted {flooded['unaccounted']:.0f}"
    )
    result = {
        "decode_per_s": round(rates["decode_per_s"]),
        "read_per_s": round(rates["read_per_s"]),
        "emit_ns": round(rates["emit_ns"]),
        "end_to_end_per_s": round(steady["per_s"]),
        "overload_stored_per_s": round(flooded["per_s"]),
        "overload_lost_share": round(flooded["lost_share"], 4),
        "unaccounted": round(abs(steady["unaccounted"]) + abs(flooded["unaccounted"])),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
