"""A real kernel ring: order, exact loss, waking by demand only, and the whole node pipeline on it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from bench._kernel_events import FORCE_WAKEUP, KernelEvents
from services.agent.abi.events import EVENT_VERSION, FLOW_EVENT, HTTP_EVENT, NAME_EVENT
from services.agent.events.pipeline import FlowPipeline, PipelineConfig
from services.agent.events.reader import RingReader
from services.agent.events.wake import RingWaker
from services.flows.columns import Kind
from services.flows.entries import NearestRule, NodeRef, PolicyRef, ServiceRef
from services.flows.metrics.config import parse as parse_groups

pytestmark = pytest.mark.root

RING = 1 << 20


def template(version: int = EVENT_VERSION) -> Any:
    record = np.zeros(1, FLOW_EVENT)
    record["type"], record["version"], record["endpoint_id"], record["protocol"] = 1, version, 7, 6
    record["saddr"][0, 10:] = (255, 255, 10, 0, 0, 1)
    record["daddr"][0, 10:] = (255, 255, 10, 0, 0, 2)
    record["dport"], record["direction"] = 80, 1
    return record


class NoNames:
    """Nothing is known."""

    generation = 0

    def identity_labels(self, identity: int) -> tuple[str, ...]:
        return ()

    def pod_at(self, address: bytes) -> None:
        return None

    def dns_names(self, address: bytes) -> tuple[str, ...]:
        return ()

    def rule_policy(self, rule_id: int) -> PolicyRef | None:
        return None

    def nearest(self, endpoint_id: int, direction: int, peer: int, protocol: int, port: int) -> NearestRule | None:
        return None

    def divided(self) -> frozenset[int]:
        return frozenset()

    def part_at(self, identity: int, address: bytes) -> int:
        return identity

    def isolating(self, endpoint_id: int, direction: int) -> tuple[PolicyRef, ...]:
        return ()

    def service_ref(self, service_id: int) -> ServiceRef | None:
        return None


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


def test_every_record_comes_out_once_in_order_while_the_kernel_writes() -> None:
    count = 200_000
    with KernelEvents(FLOW_EVENT, RING) as kernel:
        kernel.template(template())
        reader = RingReader.open(kernel.ring_fd, FLOW_EVENT)
        writer = threading.Thread(target=kernel.emit, args=(count,))
        writer.start()
        seen: list[Any] = []
        deadline = time.monotonic() + 30
        while (writer.is_alive() or reader.pending) and time.monotonic() < deadline:
            records = reader.read(4096)
            if len(records):
                seen.append(records)
        writer.join()
        numbers = np.concatenate([records["policy_revision"] for records in seen]).astype(np.int64)
        lost = kernel.lost()
        reader.close()
    assert len(numbers) + lost == count
    assert (np.diff(numbers) > 0).all()
    assert count - numbers[-1] + (np.diff(numbers) - 1).sum() + numbers[0] - 1 == lost
    times = np.concatenate([records["time_ns"] for records in seen]).astype(np.int64)
    assert (np.diff(times) >= 0).all()
    assert (seen[0]["dport"] == 80).all()


async def test_the_loop_is_woken_when_the_kernel_asks_and_only_then() -> None:
    for flags, calls in ((FORCE_WAKEUP, 1), (1, 0)):
        with KernelEvents(FLOW_EVENT, RING, flags) as kernel:
            kernel.template(template())
            reader = RingReader.open(kernel.ring_fd, FLOW_EVENT)
            with RingWaker([kernel.ring_fd]) as waker:
                await waker.wait(0.01)
                before = waker.calls
                kernel.emit(100)
                start = time.monotonic()
                await waker.wait(0.3)
                assert (waker.calls - before, time.monotonic() - start < 0.25) == (calls, bool(calls))
                # Unread data must not keep the loop spinning.
                await waker.wait(0.05)
                assert waker.calls - before == calls
            assert len(reader.read(200)) == 100
            reader.close()


async def test_the_pipeline_accounts_for_every_event() -> None:
    with (
        KernelEvents(FLOW_EVENT, RING) as kernel,
        KernelEvents(HTTP_EVENT, RING) as http,
        KernelEvents(NAME_EVENT, RING) as messages,
    ):
        kernel.template(template())
        registry = CollectorRegistry()
        config = PipelineConfig(NodeRef("n1"), "1.0", capacity=65_536, metrics=parse_groups(["flow"]))
        pipeline = FlowPipeline(config, NoNames(), kernel.ring_fd, http.ring_fd, messages.ring_fd, kernel, registry)
        kernel.emit(RING // 128 + 5000)  # more than the ring holds, and nobody reads
        lost = kernel.lost()
        assert lost >= 5000
        task = asyncio.create_task(pipeline.run())
        await until(lambda: pipeline.store.seen + pipeline.store.lost == RING // 128 + 5000)
        assert pipeline.store.lost == lost
        kernel.template(template(EVENT_VERSION + 1))
        kernel.emit(10)
        await until(lambda: pipeline.store.lost == lost + 10)  # unreadable ones are counted as well
        segment = pipeline.store.segments[-1]
        last = {name: values[segment.rows - 1].item() for name, values in segment.columns.items()}
        assert (last["kind"], last["drop_reason"], last["bytes"]) == (Kind.LOST, 3, 10)
        seen = pipeline.store.seen
        pipeline.add(np.repeat(template(), 20_000))  # what the conntrack collector makes goes the same way
        assert pipeline.store.seen == seen + 20_000
        first = pipeline.store.segments[0].columns["time_ns"][0]
        assert abs(int(first) - time.time_ns()) < 60 * 1_000_000_000
        text = generate_latest(registry).decode()
        assert f'ciliate_events_lost_total{{source="kernel_ring"}} {float(lost)}' in text
        assert 'ciliate_events_lost_total{source="unreadable"} 10.0' in text
        assert f'hubble_lost_events_total{{source="perf_event_ring_buffer"}} {float(lost)}' in text
        counted = [line for line in text.splitlines() if line.startswith("hubble_flows_processed_total{")]
        assert counted
        assert sum(float(line.rsplit(" ", 1)[1]) for line in counted) >= pipeline.store.seen
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        pipeline.close()
