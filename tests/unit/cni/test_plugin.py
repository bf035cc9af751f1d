"""The CNI plugin against a scripted agent: what runtimes get back, with and without somebody on the socket."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cni.plugin import run

ENVIRONMENT = {
    "CNI_CONTAINERID": "abc123",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
}


def call(command: str, path: Path, version: str = "1.0.0", **environment: str) -> tuple[int, dict[str, Any]]:
    config = {"cniVersion": version, "name": "ciliate", "type": "ciliate-cni", "socket": str(path)}
    status, text = run({**ENVIRONMENT, "CNI_COMMAND": command, **environment}, lambda: json.dumps(config))
    return status, json.loads(text) if text else {}


class Agent:
    """Answers each connection with `reply` and keeps what was asked."""

    def __init__(self, path: Path, reply: bytes) -> None:
        self.asked: list[dict[str, Any]] = []
        self._reply = reply
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                self.asked.append(json.loads(stream.readline()))
                connection.sendall(self._reply)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cni.sock"


@pytest.fixture
def agent(path: Path, request: pytest.FixtureRequest) -> Iterator[Agent]:
    agent = Agent(path, getattr(request, "param", b'{"result": {"ips": []}}\n'))
    yield agent
    agent.close()


def test_version_needs_nothing() -> None:
    status, text = run({"CNI_COMMAND": "VERSION"}, lambda: "")
    assert (status, json.loads(text)["supportedVersions"][-1]) == (0, "1.0.0")


def test_add_passes_on_what_the_runtime_said(agent: Agent, path: Path) -> None:
    assert call("ADD", path, version="0.4.0") == (0, {"cniVersion": "0.4.0", "ips": []})
    asked = agent.asked[0]
    assert (asked["command"], asked["container_id"], asked["ifname"]) == ("ADD", "abc123", "eth0")
    assert asked["args"] == {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web"}


@pytest.mark.parametrize("agent", [b'{"result": {}}\n'], indirect=True)
def test_del_and_check_have_no_output(agent: Agent, path: Path) -> None:
    assert call("DEL", path, CNI_NETNS="") == (0, {})
    assert call("CHECK", path) == (0, {})
    assert len(agent.asked) == 2


@pytest.mark.parametrize("agent", [b'{"error": {"code": 100, "msg": "no address", "details": "d"}}\n'], indirect=True)
def test_the_agents_errors_are_the_runtimes(agent: Agent, path: Path) -> None:
    expected = {"cniVersion": "1.0.0", "code": 100, "msg": "no address", "details": "d"}
    assert call("ADD", path) == (1, expected)


@pytest.mark.parametrize("agent", [b"", b"half a line"], indirect=True)
def test_an_agent_that_dies_while_answering_is_away(agent: Agent, path: Path) -> None:
    assert call("ADD", path)[1]["code"] == 11


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_without_the_agent_the_runtime_shall_try_again(path: Path, command: str) -> None:
    status, answer = call(command, path)
    assert (status, answer["code"]) == (1, 11)
    assert answer["msg"] == f"the ciliate agent does not answer on {path}"


def test_without_the_agent_deletions_are_queued_once(path: Path) -> None:
    assert call("DEL", path) == (0, {})
    assert call("DEL", path) == (0, {})
    [file] = (path.parent / "cni-queue").iterdir()
    assert file.name == "abc123.eth0.json"
    assert json.loads(file.read_text())["container_id"] == "abc123"


@pytest.mark.parametrize(
    ("environment", "code", "message"),
    [
        ({"CNI_COMMAND": "PLAY"}, 4, "CNI_COMMAND is 'PLAY'"),
        ({"CNI_NETNS": ""}, 4, "missing in the environment: CNI_NETNS"),
        ({"CNI_CONTAINERID": "../x"}, 4, "is not a container id"),
        ({"CNI_IFNAME": "eth0/../x"}, 4, "is not an interface name"),
        ({"CNI_ARGS": "K8S_POD_NAME"}, 4, "CNI_ARGS: 'K8S_POD_NAME' is not key=value"),
    ],
)
def test_a_wrong_environment(path: Path, environment: dict[str, str], code: int, message: str) -> None:
    status, answer = call("ADD", path, **environment) if "CNI_COMMAND" not in environment else call("PLAY", path)
    assert (status, answer["code"]) == (1, code)
    assert message in answer["msg"]


@pytest.mark.parametrize(
    ("text", "code"),
    [("{", 6), ("[]", 6), ("{}", 7), ('{"socket": "x"}', 7), ('{"socket": "/x", "cniVersion": "9"}', 1)],
)
def test_a_wrong_configuration(text: str, code: int) -> None:
    status, answer = run({**ENVIRONMENT, "CNI_COMMAND": "ADD"}, lambda: text)
    assert (status, json.loads(answer)["code"]) == (1, code)


def test_only_the_standard_library_is_loaded() -> None:
    code = (
        "import sys; import services.cni.__main__; "
        "print([n for n in sys.modules if n.startswith('services.') and not n.startswith('services.cni')], "
        "[n for n in ('grpc', 'yaml', 'structlog', 'asyncio', 'pydantic') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
