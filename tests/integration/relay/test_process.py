"""`ciliate-relay` as a process: configuration errors in a line, readiness, metrics, a graceful end."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import grpc.aio
import pytest

from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from tests.integration.relay.conftest import Place


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.relay", *arguments, stderr=asyncio.subprocess.PIPE
    )


async def test_it_serves_and_ends_when_told(place: Place, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    files = place.files("relay")
    (tmp_path / "relay.yaml").write_text(
        f"listen: ['{place.target}', '127.0.0.1:0']\ncapacity: 4096\n"
        f"tls_ca: {files.ca}\ntls_cert: {files.cert}\ntls_key: {files.key}\nmetrics_address: {metrics}\n"
    )
    process = await start("--config", str(tmp_path / "relay.yaml"))
    agent = place.agent()
    try:
        async with agent.pushing(), asyncio.timeout(20), place.client() as stub:
            agent.emit(7)
            status = await stub.ServerStatus(observer_pb2.ServerStatusRequest(), wait_for_ready=True)
            assert status.max_flows == 4096
            while agent.pusher.acknowledged_rows < 7:  # noqa: ASYNC110 - another process acknowledges
                await asyncio.sleep(0.01)
            follower = stub.GetFlows(observer_pb2.GetFlowsRequest(follow=True, number=1))
            await follower.read()
            with await asyncio.to_thread(urllib.request.urlopen, f"http://{metrics}/metrics") as answer:
                text = answer.read().decode()
            assert 'ciliate_relay_flows_stored_total{node="node1"} 7.0' in text
            assert "ciliate_relay_agents_connected 1.0" in text
            assert re.search(r"^hubble_flows_processed_total{.*} 7\.0$", text, re.MULTILINE)
            process.send_signal(signal.SIGTERM)  # open streams do not hold it up
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert not (place.directory / "relay.sock").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "tls_ca, tls_cert and tls_key are all needed"),
        (["--insecure", "--capacity", "5"], "capacity"),
        (["--insecure", "--lisen", "x"], "did you mean --listen"),
        (["--insecure", "--listen", "nonsense:port:x"], "nonsense"),
    ],
)
async def test_what_is_wrong_is_said_in_a_line(arguments: list[str], message: str) -> None:
    process = await start(*arguments)
    async with asyncio.timeout(20):
        _, error = await process.communicate()
    text = error.decode()
    assert process.returncode not in (0, None)
    assert message in text
    assert "Traceback" not in text


async def test_plaintext_only_where_it_is_said(tmp_path: Path) -> None:
    process = await start("--insecure", "--listen", f"unix://{tmp_path}/relay.sock")
    try:
        async with asyncio.timeout(20), grpc.aio.insecure_channel(f"unix://{tmp_path}/relay.sock") as there:
            stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
            await stub.ServerStatus(observer_pb2.ServerStatusRequest(), wait_for_ready=True)
    finally:
        process.terminate()
        await process.wait()


async def test_a_killed_relay_still_answers_what_it_had_written(place: Place, tmp_path: Path) -> None:
    files = place.files("relay")
    flags = ["--listen", place.target, "--history-dir", str(tmp_path / "flows"), "--history-flush", "0.2"]
    flags += ["--history-max-age", "1e10"]  # the records of this test are as old as the clock they were made with
    flags += ["--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key]
    process = await start(*flags)
    agent = place.agent()
    try:
        async with agent.pushing(), asyncio.timeout(30), place.client() as stub:
            agent.emit(9)
            while agent.pusher.acknowledged_rows < 9:  # noqa: ASYNC110 - another process acknowledges
                await asyncio.sleep(0.01)
            request = observer_pb2.GetFlowsRequest(number=20)
            before = [each.SerializeToString() async for each in stub.GetFlows(request) if each.HasField("flow")]
            while not [found for found in (tmp_path / "flows").glob("*.parquet") if "-9." in found.name]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        process.kill()
        await process.wait()
        process = await start(*flags)
        async with asyncio.timeout(30), place.client() as stub:
            answers = stub.GetFlows(request, wait_for_ready=True)
            after = [each.SerializeToString() async for each in answers if each.HasField("flow")]
        assert after == before
        assert len(after) == 9
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
