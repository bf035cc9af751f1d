"""Every stage behind the kernel overloaded at once, on purpose: what arrives and what is counted is what was emitted.

The kernel's own stage has its test in `tests/integration/events`, the sender's buffer one more in `test_push.py`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.common.pb.flow import flow_pb2
from services.common.pb.ingest.v1 import ingest_pb2
from services.common.pb.observer import observer_pb2 as pb
from services.flows.export import rotation
from services.relay.app import serving
from services.relay.config import Config
from tests.integration.relay.conftest import START, Place, until

KERNEL_LOST = 77
LOSS_ROWS = 2
"""Rows that tell of the kernel's and of the buffer's losses."""
BATCH = 256


class Sums:
    """What somebody got: flows, and events told to be lost."""

    def __init__(self) -> None:
        self.flows = 0
        self.lost: dict[int, int] = {}

    def add(self, message: pb.GetFlowsResponse) -> None:
        if message.WhichOneof("response_types") == "flow":
            self.flows += 1
        elif message.WhichOneof("response_types") == "lost_events":
            event = message.lost_events
            self.lost[event.source] = self.lost.get(event.source, 0) + event.num_events_lost

    @property
    def events(self) -> int:
        return self.flows + sum(self.lost.values())


async def follow(answers: AsyncIterator[pb.GetFlowsResponse], sums: Sums, pause: asyncio.Event) -> None:
    """A reader that does not read while it is told to pause."""
    async for message in answers:
        sums.add(message)
        await pause.wait()


def relay_config(place: Place, **options: Any) -> Config:
    files = place.files("relay")
    values = {"tls_ca": files.ca, "tls_cert": files.cert, "tls_key": files.key, "node_name": "relay-0"} | options
    return Config(listen=[place.target], **values)


async def test_every_stage_accounts_for_every_event(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.flows.follow.GAP_SECONDS", 0.05)
    monkeypatch.setattr("services.flows.export.exporter.FLUSH_SECONDS", 0.02)
    export, full, real = tmp_path / "flows.log", [True], os.write

    def write(descriptor: int, data: Any) -> int:
        if full[0] and os.readlink(f"/proc/self/fd/{descriptor}") == str(export):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(rotation.os, "write", write)
    agent = place.agent(limit_bytes=400_000)
    config = relay_config(
        place,
        capacity=2048,
        history_dir=str(tmp_path / "history"),
        history_flush=3600,
        history_max_age=1e10,
        export_file_path=str(export),
    )
    sums, pause = Sums(), asyncio.Event()
    # 1. Nobody takes what the agent has: its buffer overflows.
    for _ in range(100):
        agent.emit(BATCH, time_ns=START)
    agent.buffer.lose(ingest_pb2.KERNEL_RING, 1, KERNEL_LOST, START)
    dropped = agent.buffer.dropped_rows
    assert dropped > 10_000
    async with serving(config, place.registry), place.client() as stub:
        call = stub.GetFlows(pb.GetFlowsRequest(follow=True))
        await call.initial_metadata()  # from here on it follows
        reading = asyncio.create_task(follow(call, sums, pause))
        try:
            async with agent.pushing():
                await until(lambda: agent.buffer.empty, 20)
                # 2. The reader stands still while the store throws away what it has not seen.
                for number in range(25):
                    agent.emit(4 * BATCH, time_ns=START + number)
                    await until(lambda: agent.buffer.empty, 20)
                emitted = agent.emitted + KERNEL_LOST
                stored = place.count("ciliate_relay_flows_stored_total")
                assert stored + dropped + KERNEL_LOST == emitted
                assert place.count("hubble_lost_events_total") == dropped + KERNEL_LOST
                # 3. What is held and what was thrown away is what was stored.
                held = place.count("ciliate_relay_flows_held")
                assert held + place.count("ciliate_relay_flows_evicted_total") == stored
                pause.set()
                agent.emit(1, time_ns=START + 10**9)
                await until(lambda: sums.events == emitted + 1, 20)
                assert sums.lost[flow_pb2.HUBBLE_RING_BUFFER] > 15_000
                assert place.count("ciliate_relay_events_missed_total") >= sums.lost[flow_pb2.HUBBLE_RING_BUFFER]
                # 4. The file: full until now. Every event is in it, or counted in it.
                await until(lambda: place.count("ciliate_export_events_lost_total") > 0)
                full[0] = False
                agent.emit(1, time_ns=START + 2 * 10**9)
                await until(lambda: export.stat().st_size > 0)
                await until(lambda: _read(export).events == emitted + 2)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    # 5. The history was never in time but for what was held at the end.
    unwritten, rows = (place.count(f"ciliate_relay_history_{name}") for name in ("unwritten_total", "rows"))
    assert unwritten > 0
    assert unwritten + rows == stored + 2 + LOSS_ROWS


def _read(path: Path) -> Sums:
    sums = Sums()
    for line in path.read_text().splitlines():
        document = json.loads(line)
        if "lost_events" in document:
            lost = document["lost_events"]
            source = flow_pb2.LostEventSource.Value(lost["source"])
            sums.lost[source] = sums.lost.get(source, 0) + int(lost["num_events_lost"])
        else:
            sums.flows += 1
    return sums
