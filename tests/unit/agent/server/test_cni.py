"""The agent's CNI socket: requests to calls, errors to the specification's codes, queued deletions."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from services.agent.endpoints.links import Attachment
from services.agent.endpoints.manager import AddRequest
from services.agent.endpoints.records import EndpointRecord
from services.agent.server.cni import MAX_INPUT, CniServer
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

    def attachments(self) -> list[Attachment]:
        return [Attachment("c1", "/run/netns/x", "eth0"), Attachment("c2", "/run/netns/y", "eth0")]


ATTACHMENT = Attachment("c1", "/run/netns/x", "eth0")
VARIABLES = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
}
VALID = "cni.dev/valid-attachments"


@pytest.fixture
def endpoints() -> Endpoints:
    return Endpoints()


@pytest.fixture
def server(tmp_path: Path, endpoints: Endpoints) -> CniServer:
    return CniServer(tmp_path / "cni.sock", endpoints, mtu=lambda: 1450)


def request(command: str, variables: dict[str, str] | None = None, **config: Any) -> tuple[bytes, bytes]:
    """What the plugin sends; `variables` over the usual ones."""
    environment = {**VARIABLES, "CNI_COMMAND": command, **(variables or {})}
    document = {"cniVersion": "1.1.0", "name": "ciliate", "socket": "/run/cni.sock", **config}
    return "".join(f"{k}={v}\0" for k, v in environment.items()).encode(), json.dumps(document).encode()


async def ask(server: CniServer, command: str, variables: dict[str, str] | None = None, **config: Any) -> Any:
    """(exit code, document)"""
    status, text = await server.answer(*request(command, variables, **config))
    return status, json.loads(text) if text else None


async def test_add_answers_with_a_cni_result(server: CniServer, endpoints: Endpoints) -> None:
    status, result = await ask(server, "ADD")
    assert status == 0
    assert endpoints.asked == [AddRequest(ATTACHMENT, "default", "web")]
    mac = "02:61:61:61:61:61"
    assert result["interfaces"][1] == {"name": "eth0", "mac": mac, "mtu": 1450, "sandbox": "/run/netns/x"}
    assert result["ips"] == [
        {"address": "10.0.0.2/32", "gateway": "169.254.1.1", "interface": 1},
        {"address": "fd00::2/128", "gateway": "fe80::1", "interface": 1},
    ]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}]
    assert result["cniVersion"] == "1.1.0"


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0"])
async def test_results_are_in_the_words_of_their_version(server: CniServer, version: str) -> None:
    _, result = await ask(server, "ADD", cniVersion=version)
    assert result["cniVersion"] == version
    assert [entry.get("version") for entry in result["ips"]] == (["4", "6"] if version < "1" else [None, None])
    assert "mtu" not in result["interfaces"][1]


async def test_del_and_check(server: CniServer, endpoints: Endpoints) -> None:
    assert await ask(server, "DEL", {"CNI_NETNS": ""}) == (0, None)
    assert await ask(server, "CHECK") == (0, None)
    assert endpoints.asked == [Attachment("c1", "", "eth0"), ATTACHMENT]
    assert server.calls == {("DEL", "ok"): 1, ("CHECK", "ok"): 1}


async def test_check_compares_with_the_earlier_result(server: CniServer) -> None:
    _, result = await ask(server, "ADD")
    chained = {"name": "ifb0"}, {"address": "192.0.2.1/32", "interface": 2}
    result["interfaces"].append(chained[0])
    result["ips"].append(chained[1])
    assert await ask(server, "CHECK", prevResult=result) == (0, None), "what others added is theirs"
    result["ips"][0]["address"] = "10.0.0.9/32"
    status, answer = await ask(server, "CHECK", prevResult=result)
    assert (status, answer["code"]) == (1, 3)
    assert "10.0.0.9" in answer["msg"]
    for wrong in ({"ips": [{}]}, {"ips": 7}, {"ips": [{"address": "x", "interface": 9}]}, {"ips": ["x"]}):
        assert (await ask(server, "CHECK", prevResult=wrong))[1]["code"] == 7


async def test_gc_removes_what_the_runtime_does_not_have(server: CniServer, endpoints: Endpoints) -> None:
    keep = [{"containerID": "c2", "ifname": "eth0"}, {"containerID": "c9", "ifname": "eth0"}]
    nobody = {"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": "", "CNI_ARGS": ""}
    assert await ask(server, "GC", nobody, **{VALID: keep}) == (0, None)
    assert endpoints.asked == [ATTACHMENT]
    endpoints.asked.clear()
    for wrong in ({}, {VALID: 7}, {VALID: ["c2"]}, {VALID: [*keep, {"containerID": "c1"}]}):
        assert (await ask(server, "GC", nobody, **wrong))[1]["code"] == 7
    assert not endpoints.asked, "what cannot be read ends no pod"
    assert await ask(server, "GC", nobody, **{VALID: []}) == (0, None)
    assert len(endpoints.asked) == 2


async def test_status_says_whether_a_pod_can_be_added(tmp_path: Path, endpoints: Endpoints) -> None:
    why = ["the agent is starting"]
    server = CniServer(tmp_path / "cni.sock", endpoints, lambda: why[0])
    status, answer = await ask(server, "STATUS")
    assert (status, answer["code"], answer["msg"]) == (1, 50, "no pod can be added: the agent is starting")
    why[0] = ""
    assert await ask(server, "STATUS") == (0, None)
    assert not endpoints.asked


@pytest.mark.parametrize(
    ("error", "code"),
    [(Unavailable("x"), 11), (NotFound("x"), 3), (Invalid("x"), 4), (Exhausted("x"), 100), (Internal("x"), 102)],
)
async def test_errors_have_the_specifications_codes(
    server: CniServer, endpoints: Endpoints, error: CiliateError, code: int
) -> None:
    endpoints.error = error
    answer = {"cniVersion": "1.0.0", "code": code, "msg": "x", "details": type(error).__name__}
    assert await ask(server, "ADD", cniVersion="1.0.0") == (1, answer)


@pytest.mark.parametrize(
    ("command", "variables", "config", "code", "message"),
    [
        ("PLAY", {}, {}, 4, "CNI_COMMAND is 'PLAY'"),
        ("ADD", {"CNI_NETNS": ""}, {}, 4, "missing in the environment: CNI_NETNS"),
        ("ADD", {"CNI_NETNS": "x"}, {}, 4, "CNI_NETNS 'x' is not a path"),
        ("ADD", {"CNI_CONTAINERID": "../x"}, {}, 4, "is not a container id"),
        ("ADD", {"CNI_IFNAME": "eth0/../x"}, {}, 4, "is not an interface name"),
        ("ADD", {"CNI_IFNAME": ".."}, {}, 4, "is not an interface name"),
        ("ADD", {"CNI_IFNAME": "x" * 16}, {}, 4, "is not an interface name"),
        ("ADD", {"CNI_ARGS": "K8S_POD_NAME"}, {}, 4, "CNI_ARGS: 'K8S_POD_NAME' is not key=value"),
        ("ADD", {"CNI_ARGS": ""}, {}, 4, "CNI_ARGS: K8S_POD_NAMESPACE is missing"),
        ("ADD", {}, {"cniVersion": "9"}, 1, "cniVersion '9' is not supported"),
        ("CHECK", {}, {"cniVersion": "0.3.1"}, 1, "CHECK needs cniVersion 0.4.0"),
        ("GC", {}, {"cniVersion": "1.0.0"}, 1, "GC needs cniVersion 1.1.0"),
        ("STATUS", {}, {"cniVersion": "1.0.0"}, 1, "STATUS needs cniVersion 1.1.0"),
        ("ADD", {}, {"socket": 7}, 7, "needs `socket`"),
        ("ADD", {}, {"prevResult": {}}, 7, "must be the first plugin of the chain"),
        ("ADD", {}, {"runtimeConfig": []}, None, ""),
        ("ADD", {}, {"runtimeConfig": 7}, 7, "runtimeConfig must be an object"),
        ("ADD", {}, {"runtimeConfig": {"portMappings": {}}}, 7, "portMappings must be a list"),
        ("ADD", {}, {"runtimeConfig": {"portMappings": [{"hostPort": 70000}]}}, 7, "hostPort 70000 is no port"),
        ("ADD", {}, {"runtimeConfig": {"bandwidth": {"ingressRate": "x"}}}, 7, "must be numbers of bits"),
    ],
)
async def test_what_is_wrong_is_named(
    server: CniServer, endpoints: Endpoints, command: str, variables: Any, config: Any, code: int | None, message: str
) -> None:
    status, answer = await ask(server, command, variables, **config)
    assert (status, answer.get("code")) == (0 if code is None else 1, code)
    assert message in answer.get("msg", "")
    assert bool(endpoints.asked) == (code is None)


async def test_what_chained_plugins_get_does_not_disturb(server: CniServer) -> None:
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]
    limits = {"ingressRate": 1000, "ingressBurst": 2000, "egressRate": 0, "egressBurst": 0}
    status, _ = await ask(server, "ADD", runtimeConfig={"portMappings": ports, "bandwidth": limits})
    assert status == 0


async def over_the_socket(path: Path, raw: bytes) -> tuple[int, Any]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(raw)
    if writer.can_write_eof():
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    status, _, text = answer.partition(b"\n")
    code, size = status.split()
    assert int(size) == len(text)
    return int(code), json.loads(text) if text else None


async def test_queued_deletions_are_done_before_the_socket_opens(
    server: CniServer, endpoints: Endpoints, tmp_path: Path
) -> None:
    queue, path = tmp_path / "cni-queue", tmp_path / "cni.sock"
    queue.mkdir()
    queued = {"command": "DEL", "container_id": "c1", "netns": "/run/netns/x", "ifname": "eth0"}
    (queue / "c1.eth0.json").write_text(json.dumps(queued))
    (queue / "c2.eth0.json").write_text("{")
    (queue / "c3.eth0.json").write_text("[" * 100_000)
    opened: list[bool] = []
    server.listening = lambda: opened.append(path.exists())
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(5):
        while not opened:  # noqa: ASYNC110 - another task opens it
            await asyncio.sleep(0.005)
    assert endpoints.asked == [ATTACHMENT]
    assert sorted(file.name for file in queue.iterdir()) == ["c2.eth0.broken", "c3.eth0.broken"]
    assert path.stat().st_mode & 0o777 == 0o600
    variables, data = request("CHECK")
    good = b"CNI %d %d\n" % (len(variables), len(data)) + variables + data
    assert await over_the_socket(path, good) == (0, None)
    for bad in (
        b"",
        b"{}\n",
        b"CNI\n",
        b"CNI 1 x\n",
        b"CNI 5 5\nabc",
        b"CNI 1 %d\n" % (MAX_INPUT + 9),
    ):
        status, answer = await over_the_socket(path, bad)
        assert (status, answer["code"]) == (1, 6), bad[:20]
    with contextlib.suppress(ConnectionError):  # it is not even read to the end
        assert (await over_the_socket(path, b"x" * 3_000_000))[0] == 1
    with contextlib.suppress(ConnectionError):  # it is not even read to the end
        assert (await over_the_socket(path, b"x" * 3_000_000))[0] == 1
    deep = b"[" * 100_000
    status, answer = await over_the_socket(path, b"CNI %d %d\n" % (len(variables), len(deep)) + variables + deep)
    assert (status, answer["code"]) == (1, 6)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not path.exists()


async def test_a_deletion_that_fails_stays_queued(server: CniServer, endpoints: Endpoints, tmp_path: Path) -> None:
    queue = tmp_path / "cni-queue"
    queue.mkdir()
    (queue / "c1.eth0.json").write_text(json.dumps({"container_id": "c1", "ifname": "eth0"}))
    endpoints.error = Unavailable("not now")
    await server.work_off()
    assert len(list(queue.iterdir())) == 1
    endpoints.error = None
    await server.work_off()
    assert list(queue.iterdir()) == []
