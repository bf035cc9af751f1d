"""Client and servers of the Service bench: forked into network namespaces, pinned to one core, blocking sockets.

Every side of the comparison pays for this Python, so there is as little of it as can be: descriptors, no objects.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.datapath.node import inside

CORE = 0
BATCH = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """What a client saw: requests per second, and the time that 99 of 100 did not exceed."""

    rate: float
    p99_us: float


def _start(netns: str, cgroup: Path | None, work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.sched_setaffinity(0, {CORE})
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text("0")
        with inside(netns):
            work()
    finally:
        os._exit(0)


def _serve(address: str, port: int, ready: int) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    listener.bind((address, port))
    listener.listen(128)
    os.write(ready, b"1")
    accept, read, write, close = listener._accept, os.read, os.write, os.close  # type: ignore[attr-defined]
    while True:
        fd, _ = accept()
        with contextlib.suppress(ConnectionError):
            while data := read(fd, 1):
                write(fd, data)
        close(fd)


@contextlib.contextmanager
def servers(netns: str, address: str, ports: Sequence[int], cgroup: Path | None = None) -> Iterator[None]:
    """An echo server on each port, one connection at a time."""
    started: list[int] = []
    reader, writer = os.pipe()
    try:
        for port in ports:
            pid = _start(netns, cgroup, partial(_serve, address, port, writer))
            started.append(pid)
        for _ in ports:
            os.read(reader, 1)
        yield
    finally:
        for pid in started:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def _short(address: str, port: int, seconds: float) -> list[float]:
    """Connect, one byte there and back, close; seconds each."""
    taken, target, clock, make = [], (address, port), time.perf_counter, _socket.socket
    start = clock()
    end, before = start + seconds, start
    while before < end:
        for _ in range(BATCH):
            sock = make()
            sock.connect(target)
            sock.send(b"\0")
            sock.recv(1)
            sock.close()
            now = clock()
            taken.append(now - before)
            before = now
    return taken


def _kept(address: str, port: int, seconds: float) -> list[float]:
    """One byte there and back on one connection; seconds each."""
    buffer, taken = bytearray(1), []
    with socket.create_connection((address, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = time.perf_counter()
        end = before + seconds
        while before < end:
            for _ in range(BATCH):
                sock.send(b"\0")
                sock.recv_into(buffer)
                now = time.perf_counter()
                taken.append(now - before)
                before = now
    return taken


CLIENTS = {"short": _short, "kept": _kept}


def measure(kind: str, netns: str, address: str, port: int, seconds: float, cgroup: Path | None = None) -> Sample:
    """A client in a namespace, and in a cgroup when one is given."""
    reader, writer = os.pipe()

    def work() -> None:
        taken = CLIENTS[kind](address, port, seconds)
        taken.sort()
        result = Sample(len(taken) / sum(taken), taken[int(len(taken) * 0.99)] * 1e6)
        os.write(writer, pickle.dumps(result))

    pid = _start(netns, cgroup, work)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    if not answer:
        raise RuntimeError(f"the client in {netns} could not use {address}:{port}")
    sample = pickle.loads(answer)  # what our own child wrote
    assert isinstance(sample, Sample)
    return sample
