"""A node whose socket hooks are on a cgroup of their own, servers on its loopback, and clients that run below it."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from services.agent.abi.layout import be16
from services.agent.abi.lb import Backend, BackendKey, BackendSlotKey, ServiceFlags, ServiceInfo, ServiceKey
from services.agent.abi.sock import SockEntry, SockKey
from services.agent.datapath.cgroup import SocketHooks, find_cgroup2
from services.agent.datapath.maps import PinnedMap
from tests.datapath.node import inside, ip, u32

T = TypeVar("T")


class Cgroup:
    """A cgroup2 directory that is gone after `close`, with all that ran in it."""

    def __init__(self, name: str) -> None:
        # The tree is the machine's, while names are unique among those of one process number space only.
        self.path = find_cgroup2() / f"{name}-{secrets.token_hex(4)}"
        self.path.mkdir()

    def close(self) -> None:
        (self.path / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + 5
        while True:
            try:
                self.path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def run(self, netns: str, work: Callable[[], T], timeout_s: int = 20) -> T:
        """Call `work` in a child that is in the cgroup and the namespace; what it returns, or its exception's text."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(timeout_s)
            try:
                (self.path / "cgroup.procs").write_text("0")
                with inside(netns):
                    answer = pickle.dumps((True, work()))
            except BaseException:  # noqa: BLE001 - told to the parent
                answer = pickle.dumps((False, traceback.format_exc()))
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        if not answer:
            raise AssertionError(f"the child did not answer within {timeout_s} s")
        done, result = pickle.loads(answer)
        if not done:
            raise AssertionError(result)
        return result  # type: ignore[no-any-return]


class Servers:
    """Sockets in a namespace that answer with their own name: TCP and UDP on address:port."""

    def __init__(self, netns: str) -> None:
        self._netns, self._sockets = netns, list[socket.socket]()

    def add(self, address: str, port: int, udp: bool = False) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(self._netns):
            made = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        self._sockets.append(made)
        if not udp:
            made.listen(64)
        threading.Thread(target=self._serve_udp if udp else self._serve_tcp, args=(made, address), daemon=True).start()

    @staticmethod
    def _serve_tcp(listener: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(f"{name} {peer[0]}".encode())

    @staticmethod
    def _serve_udp(server: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                _, peer = server.recvfrom(100)
                if not peer:
                    return  # shut down
                server.sendto(f"{name} {peer[0]}".encode(), peer)

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Services:
    """Frontends and backends written by hand."""

    def __init__(self, opened: Callable[[str], PinnedMap]) -> None:
        self._map = opened

    def put(
        self,
        service_id: int,
        frontend: tuple[str, int],
        backends: list[tuple[str, int]],
        protocol: int = socket.IPPROTO_TCP,
        flags: int = 0,
        affinity_s: int = 0,
    ) -> None:
        for slot, (address, port) in enumerate(backends):
            value = Backend(address=ip(address), port=be16(port), protocol=protocol)
            self._map("backends").update(BackendKey(service_id=service_id, slot=slot).pack(), value.pack())
        key = ServiceKey(address=ip(frontend[0]), port=be16(frontend[1]), protocol=protocol)
        flags = flags or (0 if backends else ServiceFlags.REFUSE)
        value = ServiceInfo(
            service_id=service_id, backend_count=len(backends), flags=flags, affinity_timeout=affinity_s
        )
        self._map("services").update(key.pack(), value.pack())

    def slots(self, service_id: int, backends: list[tuple[str, int]], remove: bool = False) -> None:
        """Where backends are, which affinity needs to know."""
        for slot, (address, port) in enumerate(backends):
            key = BackendSlotKey(address=ip(address), service_id=service_id, port=be16(port)).pack()
            if remove:
                self._map("backend_slots").delete(key)
            else:
                self._map("backend_slots").update(key, u32(slot))

    def wildcard(self, address: str) -> None:
        """Every other port of the address is refused."""
        info = ServiceInfo(flags=ServiceFlags.WILDCARD)
        self._map("services").update(ServiceKey(address=ip(address)).pack(), info.pack())

    def sockets(self) -> dict[SockKey, SockEntry]:
        return {SockKey.unpack(key): SockEntry.unpack(value) for key, value in self._map("sockets").items()}


@contextlib.contextmanager
def hooked(root: Path, name: str) -> Iterator[tuple[Cgroup, SocketHooks]]:
    """A cgroup with a node's hooks on it."""
    cgroup = Cgroup(name)
    hooks = SocketHooks(root, cgroup.path)
    try:
        hooks.attach()
        yield cgroup, hooks
    finally:
        hooks.detach()
        cgroup.close()


def call(target: tuple[str, int], family: int = 0, udp: bool = False) -> dict[str, Any]:
    """Connect, be answered; who answered, from where one thinks it came, and what error there was."""
    family = family or (socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
    with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as made:
        made.settimeout(3)
        try:
            made.connect(target)
            if udp:
                made.send(b"?")
            answer, source = made.recvfrom(100)
        except OSError as error:
            return {"errno": error.errno, "error": str(error)}
        # A stream has no source.
        return {"answer": answer.decode(), "peer": made.getpeername()[:2], "source": source and source[:2]}
