#!/usr/bin/python3 -IS
"""CNI spec 1.0.0: environment and configuration in, result or error JSON out; the agent is asked over a unix socket.

    runtime --env, stdin--> plugin --one JSON line--> agent (cni.sock) --one JSON line--> plugin --stdout--> runtime

Without the agent: ADD and CHECK fail with code 11 (try again later); DEL is written to a queue folder that the agent
works off when it is back, because a runtime that may not delete keeps the pod for ever.

This file alone is the plugin: copied to the runtime's folder as `ciliate-cni` it starts without site packages, which
is half of the time that a call takes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes longer to import than most calls take to answer
    from collections.abc import Callable, Mapping
    from typing import Any

SUPPORTED = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")
CURRENT = "1.0.0"
TIMEOUT_SECONDS = 25.0

INCOMPATIBLE_VERSION = 1
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11

if TYPE_CHECKING:
    Document = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


class PluginError(Exception):
    """An error as the runtime gets it."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


class AgentAway(Exception):
    """Nobody answers on the agent's socket."""


def run(environment: Mapping[str, str], read_input: Callable[[], str]) -> tuple[int, str]:
    """(exit code, what goes to standard output)."""
    version = CURRENT
    try:
        command = environment.get("CNI_COMMAND", "")
        if command == "VERSION":
            return 0, json.dumps({"cniVersion": CURRENT, "supportedVersions": list(SUPPORTED)})
        config = _config(read_input())
        version = _version(config)
        result = _dispatch(command, environment, config)
    except PluginError as error:
        answer = {"cniVersion": version, "code": error.code, "msg": error.message, "details": error.details}
        return 1, json.dumps(answer)
    return 0, json.dumps({"cniVersion": version, **result}) if result else ""


def _dispatch(command: str, environment: Mapping[str, str], config: Document) -> Document:
    if command not in ("ADD", "DEL", "CHECK"):
        raise PluginError(INVALID_ENVIRONMENT, f"CNI_COMMAND is {command!r}; it must be ADD, DEL, CHECK or VERSION")
    request = _request(command, environment, config)
    path = str(config["socket"])
    try:
        return _ask(path, request)
    except AgentAway as error:
        if command != "DEL":
            raise PluginError(TRY_AGAIN_LATER, f"the ciliate agent does not answer on {path}", str(error)) from error
        _queue(path, request)
        return {}


def _config(text: str) -> Document:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise PluginError(DECODING_FAILURE, "the network configuration is not JSON", str(error)) from error
    if not isinstance(config, dict):
        raise PluginError(DECODING_FAILURE, "the network configuration is not a JSON object")
    if not isinstance(config.get("socket"), str) or not config["socket"].startswith("/"):
        raise PluginError(INVALID_CONFIG, "the network configuration needs `socket`: the path of the agent's cni.sock")
    return config


def _version(config: Document) -> str:
    version = config.get("cniVersion", CURRENT)
    if version not in SUPPORTED:
        raise PluginError(INCOMPATIBLE_VERSION, f"cniVersion {version!r} is not supported", f"use {CURRENT}")
    return str(version)


def _request(command: str, environment: Mapping[str, str], config: Document) -> Document:
    needed = ["CNI_CONTAINERID", "CNI_IFNAME"] + (["CNI_NETNS"] if command != "DEL" else [])
    missing = [name for name in needed if not environment.get(name)]
    if missing:
        raise PluginError(INVALID_ENVIRONMENT, f"missing in the environment: {', '.join(missing)}")
    container, ifname = environment["CNI_CONTAINERID"], environment["CNI_IFNAME"]
    if not _NAME.fullmatch(container):
        raise PluginError(INVALID_ENVIRONMENT, f"CNI_CONTAINERID {container!r} is not a container id")
    if len(ifname) > 15 or ifname in (".", "..") or re.search(r"[/:\s]", ifname):
        raise PluginError(INVALID_ENVIRONMENT, f"CNI_IFNAME {ifname!r} is not an interface name")
    return {
        "command": command,
        "container_id": container,
        "netns": environment.get("CNI_NETNS", ""),
        "ifname": ifname,
        "args": _arguments(environment.get("CNI_ARGS", "")),
        "prev_result": config.get("prevResult"),
    }


def _arguments(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(";") if part]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise PluginError(INVALID_ENVIRONMENT, f"CNI_ARGS: {wrong[0]!r} is not key=value")
    return {name: value for name, _, value in pairs}


def _ask(path: str, request: Document) -> Document:
    """One line there, one line back; raises `AgentAway` and the agent's own errors."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_SECONDS)
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except TimeoutError as error:
        raise AgentAway(f"no answer within {TIMEOUT_SECONDS:g} s") from error
    except OSError as error:
        raise AgentAway(error.strerror or str(error)) from error
    if not line.endswith(b"\n"):
        raise AgentAway("the connection was closed before an answer came")
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise PluginError(DECODING_FAILURE, "the agent's answer is not JSON", str(error)) from error
    if problem := answer.get("error"):
        raise PluginError(int(problem["code"]), str(problem["msg"]), str(problem.get("details", "")))
    result: Document = answer.get("result") or {}
    return result


def _queue(socket_path: str, request: Document) -> None:
    """Leave a DEL for later: a file that appears whole or not at all."""
    folder = queue_folder(socket_path)
    name = f"{request['container_id']}.{request['ifname']}"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fresh = os.path.join(folder, f".{name}")
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump(request, file)
        os.replace(fresh, os.path.join(folder, f"{name}.json"))
    except OSError as error:
        raise PluginError(
            IO_FAILURE, "the ciliate agent is away and the deletion cannot be queued", f"{folder}: {error.strerror}"
        ) from error


def queue_folder(socket_path: str) -> str:
    """Where deletions wait for the agent: beside its socket."""
    return os.path.join(os.path.dirname(socket_path), "cni-queue")


def main() -> int:
    """Answer one CNI call; returns the exit code."""
    status, answer = run(os.environ, sys.stdin.read)
    if answer:
        sys.stdout.write(answer + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
