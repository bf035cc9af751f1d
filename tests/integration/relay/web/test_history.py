"""What memory has thrown out is on the map and in the table as well, from files, and filters narrow it likewise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.flows.history.history import History, open_history
from services.relay.web.api import Api
from services.relay.web.server import WebServer
from tests.integration.relay.web.test_server import Nodes, get
from tests.unit.relay.web.cluster import CART, FRONTEND, REDIS, START, VISITOR, Shop

HOURS = 3600 * 1_000_000_000


class Past:
    """A shop whose memory is small: the first hour is on disk alone."""

    def __init__(self, folder: Path) -> None:
        self.shop = Shop(capacity=1024)
        history = open_history(str(folder), self.shop.store, max_mb=64, max_age_s=1e9)
        assert history is not None
        self.history: History = history

    async def happen(self) -> None:
        for _ in range(5):
            self.shop.refuse(VISITOR, REDIS)
        self.shop.ask(FRONTEND, CART, "/old", 200, 3000)
        await self.history.flush()
        self.shop.now = START + 2 * HOURS
        while self.shop.store.first == 0 or self.shop.store.segments[0].min_time < START + HOURS:
            for _ in range(60):
                self.shop.connect(FRONTEND, CART)
            await self.history.flush()

    async def ask(self, path: str, **parameters: str) -> Any:
        api = Api(self.shop.store, self.history, Nodes(), "1.0", lambda: self.history.oldest_ns, lambda: self.shop.now)
        async with WebServer(":0", None, api) as server, aiohttp.ClientSession(server.url) as session:
            return await get(session, path, **parameters)


async def test_the_past_is_read_from_files(tmp_path: Path) -> None:
    past = Past(tmp_path)
    await past.happen()
    first_hour = {"since": str(START // 1_000_000_000), "until": str(START // 1_000_000_000 + 3600)}
    status = await past.ask("/api/v1/status")
    assert status["oldest"] == pytest.approx(START / 1e9, abs=1)
    graph = await past.ask("/api/v1/graph", **first_hour)
    assert {edge["verdict"]: edge["refused"] for edge in graph["edges"]} == {"refused": 5, "passed": 0}
    (reason,) = next(edge["reasons"] for edge in graph["edges"] if edge["refused"])
    assert reason["nearest"]["rule"] == "spec.ingress[0]"
    both = await past.ask("/api/v1/graph", since="1", until=str(past.shop.now // 1_000_000_000 + 1))
    assert len(both["edges"]) == 2
    assert sum(both["timeline"]["refused"]) == 5
    flows = await past.ask("/api/v1/flows", **first_hour, verdict="DROPPED")
    assert len(flows["flows"]) == 5
    assert {flow["source"]["workload"] for flow in flows["flows"]} == {"Deployment/visitor"}
    newest = await past.ask("/api/v1/flows", since="1", limit="3")
    assert min(flow["time"] for flow in newest["flows"]) > START / 1e9 + 3600
    every = await past.ask("/api/v1/flows", since="1", limit="1000", **{"http-path": "old"})
    assert [flow["http"]["code"] for flow in every["flows"]] == [None, 200]
    past.history.close()


async def test_a_file_that_is_broken_is_set_aside_and_the_rest_is_told(tmp_path: Path) -> None:
    past = Past(tmp_path)
    await past.happen()
    oldest = min(tmp_path.glob("*.parquet"))
    oldest.write_bytes(oldest.read_bytes()[:100])
    graph = await past.ask("/api/v1/graph", since="1", until=str(past.shop.now // 1_000_000_000 + 1))
    assert [edge["verdict"] for edge in graph["edges"]] == ["passed"]
    assert past.history.figures.broken == 1
    past.history.close()
