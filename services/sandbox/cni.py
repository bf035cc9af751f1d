"""Calling a CNI plugin as a container runtime does (spec 1.0.0): a process, its environment, JSON in and out."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from services.common.errors import Unavailable
from services.sandbox.state import NETNS_ROOT

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Attachment:
    """One pod's interface: what ADD, CHECK and DEL are called with."""

    container_id: str
    netns: str
    namespace: str
    pod: str
    socket: str
    """The agent's CNI socket."""


async def add(attachment: Attachment) -> list[str]:
    """Attach; returns the pod's addresses without prefix length. Raises `Unavailable` with the plugin's message."""
    result = await _call("ADD", attachment)
    return [str(entry["address"]).partition("/")[0] for entry in result.get("ips") or ()]


async def delete(attachment: Attachment) -> None:
    """Detach; what is gone already is no error."""
    await _call("DEL", attachment)


def _variables(command: str, attachment: Attachment) -> dict[str, str]:
    """What a runtime tells its plugins."""
    pod = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": attachment.namespace,
        "K8S_POD_NAME": attachment.pod,
        "K8S_POD_INFRA_CONTAINER_ID": attachment.container_id,
    }
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.container_id,
        "CNI_NETNS": str(NETNS_ROOT / attachment.netns),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": os.path.dirname(sys.executable),
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in pod.items()),
    }


async def _call(command: str, attachment: Attachment) -> dict[str, Any]:
    configuration = {
        "cniVersion": "1.0.0",
        "name": "ciliate",
        "type": "ciliate-cni",
        "socket": attachment.socket,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.cni",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **_variables(command, attachment)},
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            output, errors = await process.communicate(json.dumps(configuration).encode())
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise Unavailable(f"CNI {command} for {attachment.pod}: no answer in {TIMEOUT_SECONDS:g} s") from error
    text = output.decode(errors="replace").strip()
    try:
        result = json.loads(text) if text else {}
    except json.JSONDecodeError:
        result = {"msg": text}
    if process.returncode != 0:
        message = result.get("msg") or errors.decode(errors="replace").strip() or f"status {process.returncode}"
        details = f" ({result['details']})" if result.get("details") else ""
        raise Unavailable(f"CNI {command} for {attachment.pod}: {message}{details}")
    return dict(result)
