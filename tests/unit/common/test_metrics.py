"""What a scraper and a kubelet get over HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from services.common import metrics
from services.common.errors import Unavailable
from services.common.metrics import MetricsServer


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(("address", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")])
async def test_metrics_and_probes(address: str, host: str) -> None:
    registry, problem = CollectorRegistry(), "not yet"
    Counter("things", "Of this test", registry=registry).inc(3)
    async with MetricsServer(address, registry, lambda: problem) as server:
        status, text = await asyncio.to_thread(get, server.port, "/metrics", host)
        assert status == 200
        assert "things_total 3.0" in text
        assert await asyncio.to_thread(get, server.port, "/healthz", host) == (200, "ok\n")
        assert await asyncio.to_thread(get, server.port, "/readyz", host) == (503, "not yet\n")
        problem = ""
        assert (await asyncio.to_thread(get, server.port, "/readyz", host))[0] == 200
        port = server.port
    with pytest.raises(OSError):
        await asyncio.to_thread(get, port, "/healthz", host)


async def test_a_process_that_hangs_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(metrics, "HEARTBEAT_SECONDS", 0.01)
    answers: list[int] = []
    async with MetricsServer("127.0.0.1:0", CollectorRegistry()) as server:
        asking = threading.Thread(target=lambda: answers.append(get(server.port, "/healthz")[0]))
        time.sleep(0.4)  # noqa: ASYNC251 - the loop hangs
        asking.start()
        asking.join()
        async with asyncio.timeout(5):
            while (await asyncio.to_thread(get, server.port, "/healthz"))[0] != 200:
                pass
    assert answers == [503]


async def test_an_address_that_is_taken_is_an_error_of_that_field() -> None:
    async with MetricsServer("127.0.0.1:0", CollectorRegistry()) as server:
        with pytest.raises(Unavailable, match="metrics_address: cannot listen"):
            async with MetricsServer(f"127.0.0.1:{server.port}", CollectorRegistry()):
                pass


async def test_no_address_serves_nothing() -> None:
    async with MetricsServer("", CollectorRegistry()) as server:
        assert server.port == 0
