"""Client and server of the datapath bench: forked into network namespaces, pinned to one core, blocking sockets.

Both sides of a comparison use the same Python, whose own time is a tenth of a round trip: ratios are a little closer
to one than a C program would find them.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable

from tests.datapath.node import inside

CORE = 0
CHUNK = 128 * 1024


def _forked(netns: str, work: Callable[[], float]) -> tuple[int, int]:
    """Run `work` in a child; returns (pid, descriptor from which its result, a double, can be read)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        os.close(reader)
        os.sched_setaffinity(0, {CORE})
        with inside(netns):
            os.write(writer, struct.pack("d", work()))
    finally:
        os._exit(0)


def _result(pid: int, reader: int) -> float:
    try:
        raw = os.read(reader, 8)
        return float(struct.unpack("d", raw)[0]) if len(raw) == 8 else 0.0
    finally:
        os.close(reader)
        os.waitpid(pid, 0)


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(128)
    return listener


def _serve_echo(listener: socket.socket) -> float:
    """Answer one byte with one byte, connection after connection, until one asks to stop."""
    buffer = bytearray(1)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while sock.recv_into(buffer):
            if buffer[0]:
                return 0.0
            sock.send(buffer)
        sock.close()


def _serve_sink(listener: socket.socket) -> float:
    """Swallow one connection; bytes per second."""
    sock, _ = listener.accept()
    buffer = bytearray(CHUNK)
    start, total = time.perf_counter(), 0
    while got := sock.recv_into(buffer):
        total += got
    return total / (time.perf_counter() - start)


def _stop(address: str, port: int) -> None:
    with socket.create_connection((address, port)) as sock:
        sock.send(b"\1")


def _rr(address: str, port: int, seconds: float) -> float:
    with socket.create_connection((address, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer, count = bytearray(1), 0
        start = time.perf_counter()
        end = start + seconds
        while time.perf_counter() < end:
            for _ in range(100):
                sock.send(b"\0")
                sock.recv_into(buffer)
            count += 100
        rate = count / (time.perf_counter() - start)
    _stop(address, port)
    return rate


def _crr(address: str, port: int, seconds: float) -> float:
    buffer, count = bytearray(1), 0
    start = time.perf_counter()
    end = start + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            sock = socket.socket()
            sock.connect((address, port))
            sock.send(b"\0")
            sock.recv_into(buffer)
            sock.close()
        count += 20
    rate = count / (time.perf_counter() - start)
    _stop(address, port)
    return rate


def _stream(address: str, port: int, seconds: float) -> float:
    data = bytes(CHUNK)
    with socket.create_connection((address, port)) as sock:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            sock.sendall(data)
    return 0.0


CLIENTS = {"rr": _rr, "crr": _crr, "stream": _stream}


def measure(kind: str, client_ns: str, server_ns: str, address: str, port: int, seconds: float) -> float:
    """Round trips, connections or bytes per second between two namespaces."""
    serve = _serve_sink if kind == "stream" else _serve_echo
    with inside(server_ns):
        listener = _listen(address, port)
    server = _forked(server_ns, lambda: serve(listener))
    listener.close()
    client = _forked(client_ns, lambda: CLIENTS[kind](address, port, seconds))
    rate = _result(*client)
    received = _result(*server)
    return received if kind == "stream" else rate
