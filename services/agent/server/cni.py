"""The agent's side of CNI: one JSON line in, one JSON line out, on a unix socket that only root may open.

Request: {"command": "ADD" | "DEL" | "CHECK", "container_id", "netns", "ifname", "args": {...}}.
Answer: {"result": {...}} or {"error": {"code", "msg", "details"}} with the codes of the CNI specification.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from services.agent.endpoints.links import GATEWAY4, GATEWAY6, Attachment
from services.agent.endpoints.manager import AddRequest
from services.agent.endpoints.records import EndpointRecord
from services.common.errors import (
    CiliateError,
    Conflict,
    Exhausted,
    Internal,
    Invalid,
    NotFound,
    Unavailable,
)
from services.common.log import get_logger

UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
DECODING_FAILURE = 6
TRY_AGAIN_LATER = 11
AGENT_FAILURE = 100
"""Codes from 100 on are the plugin's own."""

ADD_SECONDS = 20.0
MAX_LINE = 1 << 20
PARALLEL = 64
QUEUE_SECONDS = 5.0

Document = dict[str, Any]

_CODES: dict[type[CiliateError], int] = {
    Invalid: INVALID_ENVIRONMENT,
    NotFound: UNKNOWN_CONTAINER,
    Unavailable: TRY_AGAIN_LATER,
    Exhausted: AGENT_FAILURE,
    Conflict: AGENT_FAILURE + 1,
    Internal: AGENT_FAILURE + 2,
}


class Endpoints(Protocol):
    """Who does the work."""

    async def add(self, request: AddRequest) -> EndpointRecord: ...

    async def delete(self, attachment: Attachment) -> None: ...

    async def check(self, attachment: Attachment) -> EndpointRecord: ...


class CniServer:
    """Serves the socket and the queue of deletions that were asked for while the agent was away."""

    def __init__(self, path: Path, endpoints: Endpoints) -> None:
        self._path, self._endpoints = path, endpoints
        self._gate = asyncio.Semaphore(PARALLEL)
        self._log = get_logger("cni")
        self.calls: dict[tuple[str, str], int] = {}
        """(command, "ok" or the error's code) -> count."""

    async def run(self) -> None:
        """Serve until cancelled; what waits in the queue comes first."""
        await self.work_off()
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._connection, path=self._path, limit=MAX_LINE)
        self._path.chmod(0o600)
        try:
            async with server:
                while True:
                    await asyncio.sleep(QUEUE_SECONDS)
                    # A plugin that found no agent a moment ago may have queued its deletion only now.
                    await self.work_off()
        finally:
            self._path.unlink(missing_ok=True)

    async def work_off(self) -> None:
        """Do the queued deletions; a file that cannot be read is put aside and reported."""
        for file in sorted((self._path.parent / "cni-queue").glob("*.json")):
            try:
                request = json.loads(file.read_text(encoding="utf-8"))
                await self._endpoints.delete(_attachment(request))
            except (ValueError, KeyError, TypeError, Invalid) as error:
                self._log.error("queued deletion unreadable", file=str(file), problem=str(error))
                file.replace(file.with_suffix(".broken"))
                continue
            except CiliateError as error:
                self._log.warning("queued deletion failed, it stays queued", file=str(file), problem=str(error))
                continue
            file.unlink(missing_ok=True)
            self._log.info("queued deletion done", container_id=request["container_id"])

    async def answer(self, line: bytes) -> Document:
        """The answer to one request line."""
        command = "?"
        try:
            request = json.loads(line)
            command = str(request["command"])
            async with self._gate:
                result = await self._dispatch(command, request)
        except (ValueError, KeyError, TypeError) as error:
            return self._failed(command, DECODING_FAILURE, "the request is not understood", repr(error))
        except CiliateError as error:
            code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), AGENT_FAILURE + 2)
            return self._failed(command, code, str(error), type(error).__name__)
        self._count(command, "ok")
        return {"result": result}

    async def _dispatch(self, command: str, request: Document) -> Document:
        attachment = _attachment(request)
        match command:
            case "ADD":
                arguments = request.get("args") or {}
                try:
                    async with asyncio.timeout(ADD_SECONDS):
                        record = await self._endpoints.add(
                            AddRequest(
                                attachment,
                                _argument(arguments, "K8S_POD_NAMESPACE"),
                                _argument(arguments, "K8S_POD_NAME"),
                            )
                        )
                except TimeoutError as error:
                    raise Unavailable(f"the endpoint was not enforced within {ADD_SECONDS:g} s") from error
                return result_of(record)
            case "DEL":
                await self._endpoints.delete(attachment)
                return {}
            case "CHECK":
                await self._endpoints.check(attachment)
                return {}
            case _:
                raise Invalid(f"command {command!r} is not ADD, DEL or CHECK")

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            try:
                line = await reader.readline()
            except ValueError:
                line = b""  # longer than any request: answered like any other nonsense
            answer = await self.answer(line)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    def _failed(self, command: str, code: int, message: str, details: str) -> Document:
        self._log.warning("cni call failed", command=command, code=code, problem=message)
        self._count(command, str(code))
        return {"error": {"code": code, "msg": message, "details": details}}

    def _count(self, command: str, outcome: str) -> None:
        self.calls[command, outcome] = self.calls.get((command, outcome), 0) + 1


def _attachment(request: Document) -> Attachment:
    container, netns, ifname = request["container_id"], request.get("netns") or "", request["ifname"]
    if not all(isinstance(value, str) for value in (container, netns, ifname)) or not container or not ifname:
        raise Invalid("container_id, netns and ifname must be strings")
    return Attachment(container, netns, ifname)


def _argument(arguments: Mapping[str, str], name: str) -> str:
    value = arguments.get(name, "")
    if not value:
        raise Invalid(f"CNI_ARGS: {name} is missing; the runtime must pass it")
    return value


def result_of(record: EndpointRecord) -> Document:
    """The CNI result of an endpoint (spec 1.0.0, section 5)."""
    endpoint = record.endpoint
    ips = [
        {
            "address": f"{address}/{address.max_prefixlen}",
            "gateway": str(GATEWAY4 if address.version == 4 else GATEWAY6),
            "interface": 1,
        }
        for address in endpoint.addresses
    ]
    routes = [
        {"dst": "0.0.0.0/0", "gw": str(GATEWAY4)} if address.version == 4 else {"dst": "::/0", "gw": str(GATEWAY6)}
        for address in endpoint.addresses
    ]
    return {
        "interfaces": [
            {"name": endpoint.ifname, "mac": endpoint.node_mac.hex(":")},
            {"name": endpoint.peer_ifname, "mac": endpoint.mac.hex(":"), "sandbox": endpoint.netns},
        ],
        "ips": ips,
        "routes": routes,
        "dns": {},
    }
