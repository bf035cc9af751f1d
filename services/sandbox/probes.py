"""Asking a web server from inside a pod, and saying in one word what came back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Self

from services.model.objects import ObjectKey
from services.sandbox.kubelet import Kubelet

CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 1.5
NO_CONNECTION, NO_ANSWER, CLOSED = "no connection", "no answer", "connection closed"
BY_KERNEL = "by the kernel"
_FORMAT = "%{http_code} %{time_connect} %{time_total} %{time_namelookup} %header{server}\\n"
_CURL_TIMED_OUT = 28


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request came to: `text` is "200", "403 by the kernel", "no connection", ...; `seconds` it took."""

    text: str
    seconds: float


def read_curl(status: int, output: str, errors: str) -> Answer:
    """One line of curl's report, and its exit status, in words."""
    code, connected, total, lookup, *server = (output.strip().splitlines() or ["000 0 0 0"])[-1].split()
    seconds = float(total) - float(lookup)
    if status == _CURL_TIMED_OUT:
        return Answer(NO_ANSWER if float(connected) else NO_CONNECTION, seconds)
    if code == "000":
        return Answer((errors.strip().splitlines() or [f"curl status {status}"])[-1], seconds)
    return Answer(answer_text(code, " ".join(server)), seconds)


def answer_text(code: str, server: str) -> str:
    """A refusal without the web server's own header did not come from the web server."""
    return f"{code} {BY_KERNEL}" if code == "403" and not server else code


def curl_command(
    method: str,
    url: str,
    connect_seconds: float = CONNECT_SECONDS,
    answer_seconds: float = ANSWER_SECONDS,
    *,
    body: bool = False,
) -> list[str]:
    """One request on a connection of its own, as a command line; its output is for `read_curl`, with `body` behind
    what was answered."""
    where = ["-w", f"\\n{_FORMAT}"] if body else ["-o", "/dev/null", "-w", _FORMAT]
    limits = ["--connect-timeout", f"{connect_seconds:g}", "--max-time", f"{connect_seconds + answer_seconds:g}"]
    return ["curl", "-sS", "-g", "-X", method, *where, *limits, url]


async def curl(kubelet: Kubelet, pod: ObjectKey, method: str, url: str, more: Sequence[str] = ()) -> Answer:
    """One request on a connection of its own, from inside the pod; `more` are curl's options."""
    return read_curl(*await kubelet.exec(pod, [*curl_command(method, url), *more]))


class OpenConnection:
    """A kept-alive HTTP connection out of a pod: what matters here is what happens to it later."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None, host: str) -> None:
        self._streams, self._host = streams, host

    @classmethod
    async def open(cls, kubelet: Kubelet, pod: ObjectKey, address: str, port: int = 80) -> Self:
        """Connect. Where that fails, every request on it comes to "no connection"."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        raw = await kubelet.socket_in(kubelet.pods[pod].netns, family)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.get_running_loop().sock_connect(raw, (address, port))
        except (OSError, TimeoutError):
            raw.close()
            return cls(None, address)
        except BaseException:
            raw.close()
            raise
        return cls(await asyncio.open_connection(sock=raw), address)

    async def request(self, method: str, path: str) -> Answer:
        """One request on the connection as it stands."""
        if self._streams is None:
            return Answer(NO_CONNECTION, 0.0)
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                text = await self._exchange(*self._streams, method, path)
        except TimeoutError:
            text = NO_ANSWER
        except (OSError, asyncio.IncompleteReadError):
            text = CLOSED
        return Answer(text, loop.time() - started)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str
    ) -> str:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        await reader.readexactly(int(headers.get("content-length", "0")))
        return answer_text(status.split()[1], headers.get("server", ""))

    async def close(self) -> None:
        """Close it, whatever state it is in."""
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(self._streams[1].wait_closed(), 1.0)


@contextlib.asynccontextmanager
async def web_server(kubelet: Kubelet, netns: str, address: str) -> AsyncIterator[None]:
    """A web server that says 200 to everything, on `address` port 80 in a network namespace, while it is open."""
    raw = await kubelet.socket_in(netns, socket.AF_INET6 if ":" in address else socket.AF_INET)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    raw.bind((address, 80))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nServer: world\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()

    server = await asyncio.start_server(answer, sock=raw)
    try:
        yield
    finally:
        server.close()
