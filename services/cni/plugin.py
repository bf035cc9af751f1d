#!/usr/bin/python3 -IS
"""CNI spec 1.1.0, the runtime's side: its request goes to the agent as it is, the agent's answer comes back as it is.

    runtime --environment, stdin--> plugin --cni.sock--> agent --exit code, text--> plugin --stdout--> runtime

What the spec asks for is judged by the agent (services/agent/server/cni_call.py). Without an agent there is little to
judge: ADD and CHECK fail with code 11 (try again later), STATUS with 50; DEL is written to a queue folder that the
agent works off when it is back, because a runtime that may not delete keeps the pod for ever.

This file alone is the plugin: copied to the runtime's folder as `ciliate-cni` it starts without site packages, and
loads `json` and `re`, which take longer than the rest together, only when the agent is away.
"""

import _socket  # `socket` without the enumerations and selectors around it, which take 6 ms to load
import posix
import sys

SUPPORTED = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT = "1.1.0"
TIMEOUT_SECONDS = 25.0
MAX_INPUT = 1 << 20

INCOMPATIBLE_VERSION = 1
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50

Answer = tuple[int, bytes]
"""(exit code, what goes to standard output)"""


def run(environment: dict[bytes, bytes], data: bytes) -> Answer:
    """The answer to one call."""
    command = environment.get(b"CNI_COMMAND", b"").decode(errors="replace")
    if command == "VERSION":
        return _versions(data)
    path = socket_path(data)
    if path:
        try:
            return ask(path, environment, data)
        except OSError as error:
            return _away(command, environment, data, str(error))
    return _away(command, environment, data, "")


def socket_path(data: bytes) -> str:
    """The value of `socket`, where a look is enough to find it; '' = only a parser can tell."""
    name, _, rest = data.partition(b'"socket"')
    colon, _, rest = rest.partition(b'"')
    path, end, rest = rest.partition(b'"')
    once = name and end and colon.strip() == b":" and b'"socket"' not in rest
    return path.decode(errors="replace") if once and path[:1] == b"/" and b"\\" not in path else ""


def ask(path: str, environment: dict[bytes, bytes], data: bytes) -> Answer:
    """The agent's answer; OSError: nobody answers.

    There: `CNI <bytes of the environment> <bytes of the input>`, a line; the CNI_ variables, each ended by a zero byte;
    the input. Back: `<exit code> <bytes>`, a line, and the output.
    """
    variables = b"".join(k + b"=" + v + b"\0" for k, v in environment.items() if k.startswith(b"CNI_"))
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(path)
        connection.sendall(b"CNI %d %d\n" % (len(variables), len(data)) + variables + data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    except TimeoutError as error:
        raise OSError(f"no answer within {TIMEOUT_SECONDS:g} s") from error
    finally:
        connection.close()
    status, _, text = answer.partition(b"\n")
    code, _, size = status.partition(b" ")
    if not code.isdigit() or not size.isdigit() or int(size) != len(text):
        raise OSError("the connection was closed before an answer came")
    return int(code), text


# Without the agent.


class Problem(Exception):
    """An error as the runtime gets it."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


def _versions(data: bytes) -> Answer:
    import json

    try:
        version = json.loads(data or b"{}").get("cniVersion", CURRENT)
    except (ValueError, AttributeError, RecursionError):
        version = CURRENT
    return 0, json.dumps({"cniVersion": version, "supportedVersions": SUPPORTED}).encode()


def _away(command: str, environment: dict[bytes, bytes], data: bytes, why: str) -> Answer:
    import json

    version = CURRENT
    try:
        config = _config(data)
        version = config["cniVersion"]
        return _without_agent(command, environment, data, config["socket"], why)
    except Problem as problem:
        found = {"cniVersion": version, "code": problem.code, "msg": problem.message, "details": problem.details}
        return 1, json.dumps(found).encode()


def _without_agent(command: str, environment: dict[bytes, bytes], data: bytes, path: str, why: str) -> Answer:
    if not why:  # nobody was asked yet: only now it is known where
        try:
            return ask(path, environment, data)
        except OSError as error:
            why = str(error)
    if command == "DEL":
        _queue(path, environment)
        return 0, b""
    if command not in ("ADD", "CHECK", "GC", "STATUS"):
        known = "ADD, CHECK, DEL, GC, STATUS or VERSION"
        raise Problem(INVALID_ENVIRONMENT, f"CNI_COMMAND is {command!r}; it must be {known}")
    code = NOT_AVAILABLE if command == "STATUS" else TRY_AGAIN_LATER
    raise Problem(code, f"the ciliate agent does not answer on {path}", why)


def _config(data: bytes):  # type: ignore[no-untyped-def] # a document; `typing` takes longer to load than a call
    import json

    if len(data) > MAX_INPUT:
        raise Problem(DECODING_FAILURE, f"the network configuration has more than {MAX_INPUT} bytes")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Problem(DECODING_FAILURE, "the network configuration is not JSON", str(error)) from error
    if not isinstance(config, dict):
        raise Problem(DECODING_FAILURE, "the network configuration is not a JSON object")
    version = config.get("cniVersion", "0.1.0")
    if version not in SUPPORTED:
        raise Problem(INCOMPATIBLE_VERSION, f"cniVersion {version!r} is not supported; use {CURRENT}")
    if not isinstance(config.get("socket"), str) or not config["socket"].startswith("/"):
        raise Problem(INVALID_CONFIG, "the network configuration needs `socket`: the path of the agent's cni.sock")
    return config


def _queue(socket_path: str, environment: dict[bytes, bytes]) -> None:
    """Leave a DEL for later: a file that appears whole or not at all."""
    import json
    import os
    import re

    container, netns, ifname = (
        environment.get(b"CNI_" + name, b"").decode(errors="replace") for name in (b"CONTAINERID", b"NETNS", b"IFNAME")
    )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", container):
        raise Problem(INVALID_ENVIRONMENT, f"CNI_CONTAINERID {container!r} is not a container id")
    if not re.fullmatch(r"[^/:\s]{1,15}", ifname) or ifname in (".", ".."):
        raise Problem(INVALID_ENVIRONMENT, f"CNI_IFNAME {ifname!r} is not an interface name")
    folder, name = queue_folder(socket_path), f"{container}.{ifname}"
    request = {"command": "DEL", "container_id": container, "netns": netns, "ifname": ifname}
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fresh = os.path.join(folder, f".{name}")
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump(request, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, os.path.join(folder, f"{name}.json"))
    except OSError as error:
        text = "the ciliate agent is away and the deletion cannot be queued"
        raise Problem(IO_FAILURE, text, f"{folder}: {error.strerror}") from error


def queue_folder(socket_path: str) -> str:
    """Where deletions wait for the agent: beside its socket."""
    return socket_path.rpartition("/")[0] + "/cni-queue"


def main() -> int:
    """Answer one CNI call; returns the exit code."""
    data = b""
    while len(data) <= MAX_INPUT and (part := posix.read(0, 65536)):
        data += part
    status, text = run(dict(posix.environ), data)
    if text:
        posix.write(1, text + b"\n")
    return status


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--version":
        posix.write(1, f"CNI protocol versions supported: {', '.join(SUPPORTED)}\n".encode())
        posix._exit(0)
    posix._exit(main())  # without the interpreter's good-bye
