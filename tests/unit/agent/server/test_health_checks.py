"""The answers that load balancers get, and servers that come and go with Services."""

from __future__ import annotations

import asyncio
import json
import socket

from services.agent.calc.services import HealthCheck
from services.agent.server.health_checks import HealthChecks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(
    port: int, request: bytes = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
) -> tuple[str, dict[str, str], str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    status, *lines = head.split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


def test_answers_follow_the_endpoints() -> None:
    async def scenario() -> None:
        port = free_port()
        wanted = [HealthCheck("shop", "web", port, 2)]
        checks = HealthChecks(lambda: wanted)
        await checks.settle()
        status, headers, body = await ask(port)
        assert status == "HTTP/1.1 200 OK"
        assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
        assert json.loads(body) == {"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2}
        wanted[:] = [HealthCheck("shop", "web", port, 0)]
        await checks.settle()
        assert (await ask(port))[0] == "HTTP/1.1 503 Service Unavailable"
        # Nonsense and too much of it end the connection, not the server.
        assert (await ask(port, b"x" * 100_000 + b"\r\n\r\n"))[0] == ""
        wanted.clear()
        await checks.settle()
        assert not checks.ports

    asyncio.run(scenario())


def test_a_taken_port_is_told_and_tried_again() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port = int(taken.getsockname()[1])
            checks = HealthChecks(lambda: [HealthCheck("shop", "web", port, 1), HealthCheck("shop", "other", port, 1)])
            await checks.settle()
            assert "cannot listen" in checks.errors["shop/other"]
            assert "belongs to shop/other" in checks.errors["shop/web"]
        await checks.settle()
        assert checks.ports == {port}
        assert (await ask(port))[0] == "HTTP/1.1 200 OK"

    asyncio.run(scenario())


def test_the_task_reacts_to_changes() -> None:
    async def scenario() -> None:
        port, wanted = free_port(), list[HealthCheck]()
        checks = HealthChecks(lambda: wanted)
        task = asyncio.create_task(checks.run())
        wanted.append(HealthCheck("a", "b", port, 1))
        checks.changed()
        for _ in range(100):
            await asyncio.sleep(0.02)
            if checks.ports:
                break
        assert (await ask(port))[0] == "HTTP/1.1 200 OK"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
