"""The agent's CNI socket: requests to calls, errors to the specification's codes, queued deletions."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from services.agent.endpoints.links import Attachment
from services.agent.endpoints.manager import AddRequest
from services.agent.endpoints.records import EndpointRecord
from services.agent.server.cni import CniServer
from services.common.errors import CiliateError, Exhausted, Internal, Invalid, NotFound, Unavailable
from services.model.identity import NumericIdentity
from services.model.labels import Labels
from services.model.objects import LocalEndpoint

RECORD = EndpointRecord(
    LocalEndpoint(
        id=7,
        namespace="default",
        pod="web",
        container_id="c1",
        ifindex=5,
        ifname="cilabc",
        mac=b"\x02aaaaa",
        node_mac=b"\x02bbbbb",
        addresses=(ipaddress.ip_address("10.0.0.2"), ipaddress.ip_address("fd00::2")),
        identity=NumericIdentity(300),
        netns="/run/netns/x",
    ),
    Labels(),
)


class Endpoints:
    """Keeps what it was asked for; raises `error` if there is one."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: CiliateError | None = None

    def _do(self, what: Any) -> EndpointRecord:
        self.asked.append(what)
        if self.error:
            raise self.error
        return RECORD

    async def add(self, request: AddRequest) -> EndpointRecord:
        return self._do(request)

    async def delete(self, attachment: Attachment) -> None:
        self._do(attachment)

    async def check(self, attachment: Attachment) -> EndpointRecord:
        return self._do(attachment)


def line(command: str, **more: Any) -> bytes:
    arguments = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web"}
    request = {"command": command, "container_id": "c1", "netns": "/run/netns/x", "ifname": "eth0", "args": arguments}
    return json.dumps(request | more).encode()


@pytest.fixture
def endpoints() -> Endpoints:
    return Endpoints()


@pytest.fixture
def server(tmp_path: Path, endpoints: Endpoints) -> CniServer:
    return CniServer(tmp_path / "cni.sock", endpoints)


ATTACHMENT = Attachment("c1", "/run/netns/x", "eth0")


async def test_add_answers_with_a_cni_result(server: CniServer, endpoints: Endpoints) -> None:
    result = (await server.answer(line("ADD")))["result"]
    assert endpoints.asked == [AddRequest(ATTACHMENT, "default", "web")]
    assert result["interfaces"][1] == {"name": "eth0", "mac": "02:61:61:61:61:61", "sandbox": "/run/netns/x"}
    assert result["ips"] == [
        {"address": "10.0.0.2/32", "gateway": "169.254.1.1", "interface": 1},
        {"address": "fd00::2/128", "gateway": "fe80::1", "interface": 1},
    ]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}]


async def test_del_and_check(server: CniServer, endpoints: Endpoints) -> None:
    assert await server.answer(line("DEL")) == {"result": {}}
    assert await server.answer(line("CHECK")) == {"result": {}}
    assert endpoints.asked == [ATTACHMENT, ATTACHMENT]
    assert server.calls == {("DEL", "ok"): 1, ("CHECK", "ok"): 1}


@pytest.mark.parametrize(
    ("error", "code"),
    [(Unavailable("x"), 11), (NotFound("x"), 3), (Invalid("x"), 4), (Exhausted("x"), 100), (Internal("x"), 102)],
)
async def test_errors_have_the_specifications_codes(
    server: CniServer, endpoints: Endpoints, error: CiliateError, code: int
) -> None:
    endpoints.error = error
    answer = await server.answer(line("ADD"))
    assert answer["error"] == {"code": code, "msg": "x", "details": type(error).__name__}


@pytest.mark.parametrize(
    ("request_line", "code"),
    [(b"{", 6), (b"[]", 6), (b"{}", 6), (b'{"command": "ADD"}', 6), (line("PLAY"), 4), (line("ADD", args={}), 4)],
)
async def test_nonsense_is_answered(server: CniServer, request_line: bytes, code: int) -> None:
    assert (await server.answer(request_line))["error"]["code"] == code


async def test_queued_deletions_are_done_before_the_socket_opens(
    server: CniServer, endpoints: Endpoints, tmp_path: Path
) -> None:
    queue = tmp_path / "cni-queue"
    queue.mkdir()
    (queue / "c1.eth0.json").write_bytes(line("DEL"))
    (queue / "c2.eth0.json").write_text("{")
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(5):
        while not (tmp_path / "cni.sock").exists():  # noqa: ASYNC110 - another task makes it
            await asyncio.sleep(0.005)
    assert endpoints.asked == [ATTACHMENT]
    assert [file.name for file in queue.iterdir()] == ["c2.eth0.broken"]
    assert (tmp_path / "cni.sock").stat().st_mode & 0o777 == 0o600
    reader, writer = await asyncio.open_unix_connection(tmp_path / "cni.sock")
    writer.write(line("CHECK") + b"\n")
    assert json.loads(await reader.readline()) == {"result": {}}
    writer.close()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not (tmp_path / "cni.sock").exists()


async def test_a_deletion_that_fails_stays_queued(server: CniServer, endpoints: Endpoints, tmp_path: Path) -> None:
    queue = tmp_path / "cni-queue"
    queue.mkdir()
    (queue / "c1.eth0.json").write_bytes(line("DEL"))
    endpoints.error = Unavailable("not now")
    await server.work_off()
    assert len(list(queue.iterdir())) == 1
    endpoints.error = None
    await server.work_off()
    assert list(queue.iterdir()) == []
