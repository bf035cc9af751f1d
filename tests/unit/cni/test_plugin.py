"""The CNI plugin against a scripted agent: what runtimes get back, with and without somebody on the socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cni import plugin
from services.cni.plugin import run, socket_path

ENVIRONMENT = {
    "CNI_CONTAINERID": "abc123",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
}


def call(
    command: str, path: Path, version: str = "1.0.0", data: bytes | None = None, **environment: str
) -> tuple[int, Any]:
    config = {"cniVersion": version, "name": "ciliate", "type": "ciliate-cni", "socket": str(path)}
    variables = {**ENVIRONMENT, "CNI_COMMAND": command, "PATH": "/bin", **environment}
    raw = {os.fsencode(key): os.fsencode(value) for key, value in variables.items()}
    status, text = run(raw, json.dumps(config).encode() if data is None else data)
    return status, json.loads(text) if text else {}


class Agent:
    """Answers each connection with `reply` and keeps what was asked."""

    def __init__(self, path: Path, reply: bytes) -> None:
        self.asked: list[tuple[dict[str, str], bytes]] = []
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
                word, variables, data = stream.readline().split()
                assert word == b"CNI"
                parts = stream.read(int(variables)).decode().split("\0")[:-1]
                self.asked.append((dict(part.split("=", 1) for part in parts), stream.read(int(data))))
                connection.sendall(self._reply)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cni.sock"


@pytest.fixture
def agent(path: Path, request: pytest.FixtureRequest) -> Iterator[Agent]:
    agent = Agent(path, getattr(request, "param", b'0 11\n{"ips": []}'))
    yield agent
    agent.close()


@pytest.mark.parametrize(
    ("data", "version"), [(b"", "1.1.0"), (b'{"cniVersion": "0.4.0"}', "0.4.0"), (b"[", "1.1.0"), (b"[]", "1.1.0")]
)
def test_version_needs_nothing(path: Path, data: bytes, version: str) -> None:
    status, answer = call("VERSION", path, data=data)
    assert (status, answer["cniVersion"], answer["supportedVersions"][-1]) == (0, version, "1.1.0")


def test_the_agent_gets_what_the_runtime_said_and_nothing_else(agent: Agent, path: Path) -> None:
    assert call("ADD", path, version="0.4.0") == (0, {"ips": []})
    variables, data = agent.asked[0]
    assert variables == {**ENVIRONMENT, "CNI_COMMAND": "ADD"}, "the rest of the environment is none of its business"
    assert json.loads(data)["cniVersion"] == "0.4.0"


@pytest.mark.parametrize("agent", [b"0 0\n"], indirect=True)
def test_an_empty_answer_is_no_output(agent: Agent, path: Path) -> None:
    assert call("DEL", path, CNI_NETNS="") == (0, {})
    assert call("CHECK", path) == (0, {})
    assert len(agent.asked) == 2


@pytest.mark.parametrize("agent", [b'1 13\n{"code": 100}'], indirect=True)
def test_the_agents_errors_are_the_runtimes(agent: Agent, path: Path) -> None:
    assert call("ADD", path) == (1, {"code": 100})


@pytest.mark.parametrize("agent", [b"", b"0", b"0 11\n{", b"nonsense\n{}", b"0 x\n", b"\xff \xff\n"], indirect=True)
def test_an_agent_that_dies_while_answering_is_away(agent: Agent, path: Path) -> None:
    assert call("ADD", path)[1]["code"] == 11


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_without_the_agent_the_runtime_shall_try_again(path: Path, command: str, code: int) -> None:
    status, answer = call(command, path)
    assert (status, answer["code"], answer["cniVersion"]) == (1, code, "1.0.0")
    assert answer["msg"] == f"the ciliate agent does not answer on {path}"
    assert answer["details"] == "[Errno 2] No such file or directory"


def test_without_the_agent_deletions_are_queued_once(path: Path) -> None:
    assert call("DEL", path) == (0, {})
    assert call("DEL", path) == (0, {})
    [file] = (path.parent / "cni-queue").iterdir()
    assert file.name == "abc123.eth0.json"
    wanted = {"command": "DEL", "container_id": "abc123", "netns": "/run/netns/x", "ifname": "eth0"}
    assert json.loads(file.read_text()) == wanted


def test_a_deletion_that_cannot_be_queued_is_told(path: Path) -> None:
    (path.parent / "cni-queue").write_text("a file")
    status, answer = call("DEL", path)
    assert (status, answer["code"]) == (1, 5)
    assert "cni-queue" in answer["details"]


@pytest.mark.parametrize(
    ("command", "environment", "message"),
    [
        ("PLAY", {}, "CNI_COMMAND is 'PLAY'"),
        ("DEL", {"CNI_CONTAINERID": "../x"}, "is not a container id"),
        ("DEL", {"CNI_CONTAINERID": ""}, "is not a container id"),
        ("DEL", {"CNI_IFNAME": "eth0/../x"}, "is not an interface name"),
        ("DEL", {"CNI_IFNAME": ".."}, "is not an interface name"),
    ],
)
def test_nothing_is_queued_for_a_wrong_environment(
    path: Path, command: str, environment: dict[str, str], message: str
) -> None:
    status, answer = call(command, path, **environment)
    assert (status, answer["code"]) == (1, 4)
    assert message in answer["msg"]
    assert not (path.parent / "cni-queue").exists()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", 6),
        (b"\xff", 6),
        (b"[]", 6),
        (b"[" * 100_000, 6),
        (b" " * (plugin.MAX_INPUT + 1), 6),
        (b"{}", 1),
        (b'{"cniVersion": "1.0.0"}', 7),
        (b'{"cniVersion": "1.0.0", "socket": "x"}', 7),
        (b'{"cniVersion": "1.0.0", "socket": 7}', 7),
        (b'{"socket": "/x", "cniVersion": "9"}', 1),
        (b'{"socket": "/x", "cniVersion": ["1.0.0"]}', 1),
    ],
)
def test_a_wrong_configuration(path: Path, data: bytes, code: int) -> None:
    status, answer = call("ADD", path, data=data)
    assert (status, answer["code"]) == (1, code)
    assert answer["cniVersion"] in plugin.SUPPORTED


def test_the_socket_is_found_by_a_look_or_by_a_parser(agent: Agent, path: Path) -> None:
    assert socket_path(b'{"a": 1,\n "socket" :\t"/run/x.sock"}') == "/run/x.sock"
    for data in (b'{"socket": "/a\\u0062"}', b'{"socket": "/a", "b": {"socket": "/c"}}', b'{"x": "socket"}', b""):
        assert not socket_path(data)
    escaped = str(path).replace("/", "\\/")
    assert call("ADD", path, data=f'{{"cniVersion": "1.0.0", "socket": "{escaped}"}}'.encode()) == (0, {"ips": []})


def program(command: str, data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    variables = {**ENVIRONMENT, "CNI_COMMAND": command}
    words = [sys.executable, "-IS", str(Path(plugin.__file__)), *arguments]
    return subprocess.run(words, env=variables, input=data, capture_output=True, check=False)


def test_as_a_program(agent: Agent, path: Path) -> None:
    data = json.dumps({"cniVersion": "1.0.0", "socket": str(path), "filling": "x" * 200_000}).encode()
    done = program("ADD", data)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'{"ips": []}\n', b"")
    assert agent.asked[0][1] == data
    done = program("ADD", b"nonsense")
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (1, 6, b"")
    assert b"1.1.0" in program("", b"", "--version").stdout


def test_next_to_nothing_is_loaded_while_the_agent_answers(agent: Agent, path: Path) -> None:
    code = (
        "import sys, posix; source = open(sys.argv[1]).read().rpartition('if __name__')[0];"
        "space = {'__name__': 'plugin'}; exec(source, space); space['main']();"
        "print([n for n in ('json', 're', 'socket', 'enum', 'typing') if n in sys.modules])"
    )
    words = [sys.executable, "-IS", "-c", code, plugin.__file__]
    data = json.dumps({"cniVersion": "1.0.0", "socket": str(path)}).encode()
    variables = {**ENVIRONMENT, "CNI_COMMAND": "ADD"}
    done = subprocess.run(words, env=variables, input=data, capture_output=True, check=True)
    assert sorted(done.stdout.split(b"\n")) == [b"", b"[]", b'{"ips": []}']
