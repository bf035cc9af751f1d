"""Real HTTP servers that say what they understood of a stream: nginx, Node's http, Python's http.server, aiohttp.

Each takes a batch of streams and answers which requests it would have acted on. A request that a server refuses itself
(400 and the like), or of which it never saw the end of the head, was not understood.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import shutil
import socket
import struct
import subprocess
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser

from tests.fuzz.http_wire import Received

TIMEOUT = 20.0
WINDOW = 64
REFUSED_BY_NGINX = frozenset({400, 408, 411, 412, 413, 414, 415, 417, 431, 494, 495, 499, 501, 505})


@dataclass(frozen=True)
class Understood:
    """A request as a server sees it: target as sent, `path` as the server itself decodes it (where it does), every
    value of the fields that rules look at, names in lower case."""

    method: str
    target: str
    path: str | None
    fields: tuple[tuple[str, str], ...]


Answer = list[list[Understood]]
WANTED = ("host", "x-tag", "x-token")


def fields_of(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """What rules may look at."""
    return tuple((name.lower(), value) for name, value in pairs if name.lower() in WANTED)


NGINX = """
worker_processes 1; daemon off; master_process off; pid {folder}/nginx.pid; error_log /dev/null crit;
events {{ worker_connections 1024; }}
http {{
  log_format seen escape=json '["$proxy_protocol_addr",$status,"$request_method","$request_uri","$uri","$http_host","$host","$http_x_tag","$http_x_token"]';
  access_log {folder}/seen.log seen; keepalive_requests 1000000000; keepalive_timeout 300; lingering_close off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen unix:{folder}/web.sock proxy_protocol;
    location / {{ return 200 "ok\\n"; }}
  }}
}}
"""  # noqa: E501


class Nginx:
    """nginx at a unix socket; its access log tells what it understood. A PROXY line in front of a stream names it."""

    name = "nginx"

    def __init__(self, folder: Path) -> None:
        self._log = folder / "seen.log"
        self._socket = str(folder / "web.sock")
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
        self._process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
        end = time.monotonic() + TIMEOUT
        while not Path(self._socket).exists():
            if time.monotonic() > end or self._process.poll() is not None:
                self.close()
                raise RuntimeError("nginx does not start")
            time.sleep(0.01)
        self._reader = self._log.open("rb")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def understand(self, batch: Sequence[Received]) -> Answer:
        found: Answer = [[] for _ in batch]
        for start in range(0, len(batch), WINDOW):
            sockets = [self._begin(start + i, received) for i, received in enumerate(batch[start : start + WINDOW])]
            for sock in sockets:
                with sock, contextlib.suppress(ConnectionError):
                    while sock.recv(65536):
                        pass
        for line in self._reader:
            self._note(line, found)
        return found

    def _begin(self, number: int, received: Received) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT)
        sock.connect(self._socket)
        address = ".".join(map(str, number.to_bytes(4, "big")))
        # Whether or not the client closed: nginx looks at no request before its head is complete.
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"PROXY TCP4 %s 127.0.0.1 1 80\r\n" % address.encode() + received.stream)
            sock.shutdown(socket.SHUT_WR)
        return sock

    @staticmethod
    def _note(line: bytes, found: Answer) -> None:
        address, status, method, target, path, host, chosen, tag, token = json.loads(line.decode("latin-1"))
        if status in REFUSED_BY_NGINX or not method:
            return
        number = int.from_bytes(bytes(map(int, address.split("."))), "big")
        # Whether a field is missing or empty its log does not tell.
        fields = (("host", host or chosen), ("x-tag", tag), ("x-token", token))
        found[number].append(Understood(method, target, path, fields))


class Node:
    """Node's http module, a process fed through a pipe; `lenient` allows what its documentation warns of."""

    def __init__(self, folder: Path, lenient: bool = False) -> None:
        self.name = "node, lenient" if lenient else "node"
        program = Path(__file__).with_name("http_server.js")
        self._process = subprocess.Popen(
            ["node", *(["--insecure-http-parser"] if lenient else []), str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def understand(self, batch: Sequence[Received]) -> Answer:
        assert self._process.stdin
        assert self._process.stdout
        frames = [struct.pack("<II", len(r.stream), r.closed) + r.stream for r in batch]
        self._process.stdin.write(struct.pack("<I", len(batch)) + b"".join(frames))
        self._process.stdin.flush()
        found: Answer = [[] for _ in batch]
        seen = json.loads(self._process.stdout.readline())
        for number, method, target, raw in seen:
            pairs = list(zip(raw[::2], raw[1::2], strict=True))
            found[number].append(Understood(method, target, None, fields_of(pairs)))
        return found


class Ending(io.BytesIO):
    """A connection's bytes; one that was not closed by the client ends in a reset."""

    def __init__(self, received: Received) -> None:
        super().__init__(received.stream)
        self._closed_well = received.closed

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(-1 if size is None else size)
        if not line.endswith(b"\n") and (size is None or size < 0 or len(line) < size) and not self._closed_well:
            raise ConnectionResetError
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size is not None and len(data) < size and not self._closed_well:
            raise ConnectionResetError
        return data


class Handler(BaseHTTPRequestHandler):
    """http.server's parser, with an application that reads bodies as their framing says."""

    protocol_version = "HTTP/1.1"
    headers: Message

    def __init__(self, received: Received) -> None:
        self.rfile = Ending(received)
        self.wfile = io.BytesIO()
        self.client_address = ("", 0)
        self.seen: list[Understood] = []
        with contextlib.suppress(ConnectionResetError, ValueError):
            self.handle()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._respond
        raise AttributeError(name)

    def _respond(self) -> None:
        fields = fields_of([(k, str(v)) for k, v in self.headers.items()])
        self.seen.append(Understood(self.command, self.path, None, fields))
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            self.rfile.read(int(self.headers.get("content-length", "0")))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class HttpServer:
    """Python's http.server."""

    name = "http.server"

    def close(self) -> None: ...

    def understand(self, batch: Sequence[Received]) -> Answer:
        with warnings.catch_warnings(action="ignore"):
            return [Handler(received).seen for received in batch]


class Aiohttp:
    """aiohttp's parser of requests (llhttp with its own checks)."""

    name = "aiohttp"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def close(self) -> None:
        self._loop.close()

    def understand(self, batch: Sequence[Received]) -> Answer:
        return [self._one(received) for received in batch]

    def _one(self, received: Received) -> list[Understood]:
        try:
            return self._feed([received.stream])
        except Exception:  # noqa: BLE001 - whatever it finds wrong with a stream
            # With the error the parser forgets what it had read of the same piece.
            seen: list[Understood] = []
            with contextlib.suppress(Exception):
                self._feed([received.stream[i : i + 1] for i in range(len(received.stream))], seen)
            return seen

    def _feed(self, pieces: Sequence[bytes], seen: list[Understood] | None = None) -> list[Understood]:
        parser = HttpRequestParser(BaseProtocol(self._loop), self._loop, 2**16)
        seen = [] if seen is None else seen
        for piece in pieces:
            for message, _ in parser.feed_data(piece)[0]:
                raw = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in message.raw_headers]
                seen.append(Understood(message.method, message.path, None, fields_of(raw)))
        return seen


Server = Nginx | Node | HttpServer | Aiohttp


def start_all(folder: Path) -> list[Server]:
    """Every server that is installed; Python's own always are."""
    servers: list[Server] = [HttpServer(), Aiohttp()]
    if shutil.which("nginx"):
        servers.append(Nginx(folder))
    if shutil.which("node"):
        servers += [Node(folder), Node(folder, lenient=True)]
    return servers
