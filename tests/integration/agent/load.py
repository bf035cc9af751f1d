"""Traffic that counts: run inside a pod's network as `load.py ROLE ADDRESS PORT`; SIGTERM ends it with one JSON line.

serve       answers every byte, TCP and UDP
established one TCP connection, a message and its answer every two milliseconds
new         one TCP connection after the other
datagrams   numbered UDP packets, one every two milliseconds; each must come back
forbidden   tries to connect all the time; counts how often it came through
web         answers HTTP requests with 200
requests    one HTTP connection, GET /allowed all the time
refused     GET /forbidden on a new connection each; counts answers that are not 403
"""

from __future__ import annotations

import http.client
import http.server
import json
import select
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any

_TOTAL_RETRANS_OFFSET = 100
"""Of `tcpi_total_retrans` in struct tcp_info."""
SO_RCVBUFFORCE = 33
PAUSE_SECONDS = 0.002
"""Between two tries: the processors are there for the agents, too."""

ended = False


def stop(_number: int, _frame: Any) -> None:
    global ended  # noqa: PLW0603 - a signal handler has no other way
    ended = True


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def retransmits(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("=I", raw, _TOTAL_RETRANS_OFFSET)[0])


def serve(address: str, port: int) -> dict[str, Any]:
    listener = socket.create_server((address, port), family=family(address), backlog=512, dualstack_ipv6=True)
    datagrams = socket.socket(family(address), socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    datagrams.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    print("started", flush=True)
    poller, open_sockets = select.epoll(), {listener.fileno(): listener, datagrams.fileno(): datagrams}
    for number in open_sockets:
        poller.register(number, select.EPOLLIN)
    while not ended:
        for number, _ in poller.poll(0.1):
            source = open_sockets[number]
            if source is listener:
                connection, _peer = listener.accept()
                open_sockets[connection.fileno()] = connection
                poller.register(connection.fileno(), select.EPOLLIN)
            elif source is datagrams:
                data, peer = datagrams.recvfrom(2048)
                datagrams.sendto(data, peer)
            else:
                try:
                    data = source.recv(65536)
                    if data:
                        source.sendall(data)
                        continue
                except ConnectionError:
                    pass
                poller.unregister(number)
                open_sockets.pop(number).close()
    return {}


def established(address: str, port: int) -> dict[str, Any]:
    answers, longest = 0, 0.0
    with socket.create_connection((address, port), timeout=5) as connection:
        while not ended:
            began = time.monotonic()
            connection.sendall(b"x" * 64)
            received = 0
            while received < 64:
                part = connection.recv(64 - received)
                if not part:
                    return {"answers": answers, "error": "closed by the other side"}
                received += len(part)
            longest = max(longest, time.monotonic() - began)
            answers += 1
            time.sleep(PAUSE_SECONDS)
    return {"answers": answers, "longest_s": round(longest, 4)}


def new(address: str, port: int) -> dict[str, Any]:
    opened, again, errors = 0, 0, []
    while not ended:
        try:
            with socket.create_connection((address, port), timeout=3) as connection:
                connection.sendall(b"x")
                if connection.recv(1) != b"x":
                    errors.append("no answer")
                again += retransmits(connection)
                opened += 1
        except OSError as error:
            errors.append(str(error))
        time.sleep(PAUSE_SECONDS)
    return {"opened": opened, "retransmits": again, "errors": errors[:5]}


def datagrams(address: str, port: int) -> dict[str, Any]:
    client = socket.socket(family(address), socket.SOCK_DGRAM)
    client.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    client.connect((address, port))
    client.setblocking(False)
    sent, seen = 0, set()

    def drain() -> None:
        while True:
            try:
                seen.add(struct.unpack("!I", client.recv(64))[0])
            except BlockingIOError:
                return

    while not ended:
        client.send(struct.pack("!I", sent))
        sent += 1
        time.sleep(PAUSE_SECONDS)
        drain()
    deadline = time.monotonic() + 2
    while len(seen) < sent and time.monotonic() < deadline:
        time.sleep(0.01)
        drain()
    return {"sent": sent, "lost": sent - len(seen)}


def forbidden(address: str, port: int) -> dict[str, Any]:
    tried, through = 0, 0
    while not ended:
        tried += 1
        try:
            with socket.create_connection((address, port), timeout=0.05):
                through += 1
        except OSError:
            pass
    return {"tried": tried, "through": through}


def web(address: str, port: int) -> dict[str, Any]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = family(address)
        request_queue_size = 512

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # connections of refused requests are reset

        daemon_threads = True

    server = Server((address, port), Handler)
    print("started", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not ended:
        time.sleep(0.05)
    return {}


def requests(address: str, port: int) -> dict[str, Any]:
    answers: dict[str, int] = {}
    connection = http.client.HTTPConnection(address, port, timeout=3)
    connection.connect()
    first = connection.sock
    while not ended:
        try:
            connection.request("GET", "/allowed")
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            return {"answers": answers, "error": str(error) or type(error).__name__}
        answers[str(answer.status)] = answers.get(str(answer.status), 0) + 1
        time.sleep(PAUSE_SECONDS)
    return {"answers": answers, "same_connection": connection.sock is first}


def refused(address: str, port: int) -> dict[str, Any]:
    answers: dict[str, int] = {}
    while not ended:
        connection = http.client.HTTPConnection(address, port, timeout=1)
        try:
            connection.request("GET", "/forbidden")
            answer = str(connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            answer = str(error) or type(error).__name__
        finally:
            connection.close()
        answers[answer] = answers.get(answer, 0) + 1
        time.sleep(PAUSE_SECONDS)
    return {"answers": answers}


ROLES = (serve, established, new, datagrams, forbidden, web, requests, refused)

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
        signal.siginterrupt(number, False)
    role = {f.__name__: f for f in ROLES}[sys.argv[1]]
    if role not in (serve, web):
        print("started", flush=True)
    print(json.dumps(role(sys.argv[2], int(sys.argv[3]))), flush=True)
