"""The agent's side of CNI, on a unix socket that only root may open: what the plugin forwards, and the deletions that
it queued while nobody was here. `services/cni/plugin.py` says what goes over the socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from services.agent.endpoints.links import Attachment
from services.agent.endpoints.manager import AddRequest
from services.agent.endpoints.records import EndpointRecord
from services.agent.server import cni_call
from services.agent.server.cni_call import Call, Refusal
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

ADD_SECONDS = 20.0
MAX_INPUT = 1 << 20
PARALLEL = 64
QUEUE_SECONDS = 5.0
REQUEST_SECONDS = 10.0

_CODES: dict[type[CiliateError], int] = {
    Invalid: cni_call.INVALID_ENVIRONMENT,
    NotFound: cni_call.UNKNOWN_CONTAINER,
    Unavailable: cni_call.TRY_AGAIN_LATER,
    Exhausted: cni_call.AGENT_FAILURE,
    Conflict: cni_call.AGENT_FAILURE + 1,
    Internal: cni_call.AGENT_FAILURE + 2,
}
Answer = tuple[int, str]
"""(exit code of the plugin, what it prints)"""


class Endpoints(Protocol):
    """Who does the work."""

    async def add(self, request: AddRequest) -> EndpointRecord: ...

    async def delete(self, attachment: Attachment) -> None: ...

    async def check(self, attachment: Attachment) -> EndpointRecord: ...

    def attachments(self) -> Collection[Attachment]: ...


class CniServer:
    """Serves the socket and the queue. `unready` says why no pod can be added now, '' where one can; `mtu` is that of
    pods' interfaces."""

    def __init__(
        self,
        path: Path,
        endpoints: Endpoints,
        unready: Callable[[], str] = lambda: "",
        mtu: Callable[[], int] = lambda: 0,
    ) -> None:
        self._path, self._endpoints, self._unready, self._mtu = path, endpoints, unready, mtu
        self._gate = asyncio.Semaphore(PARALLEL)
        self._log = get_logger("cni")
        self.calls: dict[tuple[str, str], int] = {}
        """(command, "ok" or the error's code) -> count."""
        self.listening: Callable[[], None] = lambda: None
        """Called when the socket is open."""

    async def run(self) -> None:
        """Serve until cancelled; what waits in the queue comes first."""
        await self.work_off()
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.unlink(missing_ok=True)
        # A hundred pods may start at once.
        server = await asyncio.start_unix_server(self._connection, path=self._path, limit=MAX_INPUT, backlog=1024)
        self._path.chmod(0o600)
        self.listening()
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
                await self._endpoints.delete(_queued(request))
            except (ValueError, KeyError, TypeError, RecursionError, Invalid) as error:
                self._log.error("queued deletion unreadable", file=str(file), problem=str(error))
                file.replace(file.with_suffix(".broken"))
                continue
            except CiliateError as error:
                self._log.warning("queued deletion failed, it stays queued", file=str(file), problem=str(error))
                continue
            file.unlink(missing_ok=True)
            self._log.info("queued deletion done", container_id=request["container_id"])

    async def answer(self, variables: bytes, data: bytes) -> Answer:
        """The answer to one call. `variables`: CNI_NAME=value, each ended by a zero byte."""
        environment = dict(part.split("=", 1) for part in variables.decode(errors="replace").split("\0") if "=" in part)
        command = environment.get("CNI_COMMAND", "?")
        try:
            call = cni_call.parse(environment, data)
            async with self._gate:
                text = await self._do(call)
        except Refusal as refusal:
            return self._failed(command, data, refusal.code, refusal.message, refusal.details)
        except CiliateError as error:
            code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), _CODES[Internal])
            return self._failed(command, data, code, str(error), type(error).__name__)
        self._count(command, "ok")
        return 0, text

    async def _do(self, call: Call) -> str:
        match call.command:
            case "STATUS":
                if problem := self._unready():
                    raise Refusal(cni_call.NOT_AVAILABLE, f"no pod can be added: {problem}")
            case "GC":
                for attachment in self._endpoints.attachments():
                    if (attachment.container_id, attachment.ifname) not in call.valid:
                        self._log.info("endpoint that the runtime does not know", container_id=attachment.container_id)
                        await self._endpoints.delete(attachment)
            case "ADD":
                return json.dumps(cni_call.result_of(await self._add(call), call.version, self._mtu()))
            case "DEL":
                await self._endpoints.delete(_of(call))
            case "CHECK":
                record = await self._endpoints.check(_of(call))
                have = {str(address) for address in record.endpoint.addresses}
                if gone := [address for address in call.expected if address not in have]:
                    raise NotFound(f"prevResult has address {gone[0]}, the interface has {', '.join(sorted(have))}")
        return ""

    async def _add(self, call: Call) -> EndpointRecord:
        namespace, pod = call.pod
        try:
            async with asyncio.timeout(ADD_SECONDS):
                return await self._endpoints.add(AddRequest(_of(call), namespace, pod))
        except TimeoutError as error:
            raise Unavailable(f"the endpoint was not enforced within {ADD_SECONDS:g} s") from error

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    variables, data = await _read(reader)
            except (ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
                code = cni_call.DECODING_FAILURE
                status, text = self._failed("?", b"", code, "the request is not understood", repr(error))
            else:
                status, text = await self.answer(variables, data)
            raw = text.encode()
            writer.write(b"%d %d\n" % (status, len(raw)) + raw)
            await writer.drain()

    def _failed(self, command: str, data: bytes, code: int, message: str, details: str) -> Answer:
        self._log.warning("cni call failed", command=command, code=code, problem=message)
        self._count(command if command in cni_call.COMMANDS else "?", str(code))
        answer = {"cniVersion": cni_call.version_of(data), "code": code, "msg": message, "details": details}
        return 1, json.dumps(answer)

    def _count(self, command: str, outcome: str) -> None:
        self.calls[command, outcome] = self.calls.get((command, outcome), 0) + 1


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """A request: `CNI <bytes> <bytes>`, the variables, the configuration. Raises ValueError, IncompleteReadError."""
    word, *sizes = (await reader.readline()).split()
    if word != b"CNI" or len(sizes) != 2 or not all(size.isdigit() and int(size) <= MAX_INPUT + 1 for size in sizes):
        raise ValueError("neither a call nor of a bearable size")
    return await reader.readexactly(int(sizes[0])), await reader.readexactly(int(sizes[1]))


def _of(call: Call) -> Attachment:
    assert call.attachment is not None
    return call.attachment


def _queued(request: dict[str, Any]) -> Attachment:
    container, netns, ifname = request["container_id"], request.get("netns") or "", request["ifname"]
    if not all(isinstance(value, str) for value in (container, netns, ifname)) or not container or not ifname:
        raise Invalid("container_id, netns and ifname must be strings")
    return Attachment(container, netns, ifname)
