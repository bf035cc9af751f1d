"""HTTP policy on real sockets: pods in namespaces, a server that knows nothing of it, clients that only see answers."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from scapy.all import TCP, Ether

from services.agent.calc.http import compile_rulesets
from services.agent.datapath.http_tables import HttpTableWriter
from services.model.verdict import Direction
from tests.datapath.http_model import Rule
from tests.datapath.node import inside
from tests.datapath.wire import WiredNode

pytestmark = pytest.mark.root

CLIENT, SERVER = 1001, 1002
RULESET = 9
FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
TIMEOUT = 10.0
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27


class Web:
    """A tiny HTTP/1.1 server: the answer's body is the request line and the SHA-256 of the request's body."""

    def __init__(self, namespace: str, backlog: int = 64) -> None:
        with inside(namespace):
            self._listener = socket.socket(socket.AF_INET6)
        self._listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("::", 80))
        self._listener.listen(backlog)
        self.lines: list[str] = []
        self.resets = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._connections: set[socket.socket] = set()

    def start(self) -> None:
        self._run(self._accept)

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Open connections receive nothing meanwhile: a classic filter that accepts no byte."""
        verdict = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # ret #0
        program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(verdict))
        for connection in self._connections:
            connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        yield
        for connection in self._connections:
            connection.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def _run(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(TIMEOUT)
            self._run(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        self._connections.add(connection)
        with connection, connection.makefile("rwb") as stream:
            try:
                while line := stream.readline():
                    self.lines.append(line.decode().strip())
                    body = self._body(stream)
                    answer = f"{line.decode().strip()} {hashlib.sha256(body).hexdigest()}".encode()
                    stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
                    stream.flush()
            except ConnectionResetError:
                self.resets.release()
            except TimeoutError:
                return
            finally:
                self._connections.discard(connection)

    @staticmethod
    def _body(stream: object) -> bytes:
        length, chunked = 0, False
        while (field := stream.readline().strip().lower()) != b"":  # type: ignore[attr-defined]
            if field.startswith(b"content-length:"):
                length = int(field.partition(b":")[2])
            chunked = chunked or field.startswith(b"transfer-encoding:")
        if not chunked:
            return stream.read(length)  # type: ignore[attr-defined,no-any-return]
        body = b""
        while size := int(stream.readline(), 16):  # type: ignore[attr-defined]
            body += stream.read(size)  # type: ignore[attr-defined]
            stream.readline()  # type: ignore[attr-defined]
        stream.readline()  # type: ignore[attr-defined]
        return body


class Client:
    """A connection of the client's."""

    def __init__(self, namespace: str, address: str) -> None:
        with inside(namespace):
            self.socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect((address, 80))

    def ask(self, path: str, method: str = "GET", fields: str = "", body: bytes = b"") -> tuple[int, bytes]:
        """(status, body) of a request on this connection; raises ConnectionResetError."""
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: web\r\n{fields}\r\n".encode() + body)
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.socket.recv(65536)
            if not part:
                raise ConnectionError("closed before an answer")
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(body) < length:
            body += self.socket.recv(65536)
        return int(head.split()[1]), body

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class Scene:
    """A client and a web server behind HTTP policy, on one node or on two."""

    def __init__(self, node: WiredNode, client_node: WiredNode) -> None:
        self.node, self.client_node = node, client_node
        self.client = client_node.add_pod(1, CLIENT)
        self.server = node.add_pod(2, SERVER)
        client_node.open(self.client)
        node.open(self.server, Direction.EGRESS)
        self.rules(Rule("GET|POST", "/ok(/.*)?"))
        self.policy()

    @classmethod
    def between(cls, cache_dir: Path, stack: contextlib.ExitStack) -> Scene:
        """Two nodes, joined."""
        near, far = WiredNode(cache_dir, 1), WiredNode(cache_dir, 2)
        stack.callback(near.close)
        stack.callback(far.close)
        scene = cls(near, far)
        near.join(far)
        return scene

    def rules(self, *rules: Rule, others: Mapping[int, Sequence[Rule]] | None = None) -> None:
        """The server's rules, and others, on all nodes."""
        for node in {self.node, self.client_node}:
            maps = {name: node.map(name) for name in ("http_grammar", "http_tables", "http_config")}
            HttpTableWriter(maps).write(compile_rulesets({RULESET: rules, **(others or {})}))

    def policy(self, l7: int = RULESET) -> None:
        self.node.rule(self.server, Direction.INGRESS, CLIENT, 6, 80, rule_id=77, l7=l7)
        self.node.change_policy(self.server)

    def address(self, v6: bool) -> str:
        return self.server.ipv6 if v6 else self.server.ipv4

    def connect(self, v6: bool = False) -> Client:
        return Client(self.client_node.pod_ns(self.client), self.address(v6))

    def web(self, backlog: int = 64) -> Web:
        return Web(self.node.pod_ns(self.server), backlog)


@pytest.fixture(scope="module")
def scene(object_cache: Path) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        node = WiredNode(object_cache, 1)
        stack.callback(node.close)
        yield Scene(node, node)


@pytest.fixture
def web(scene: Scene) -> Iterator[Web]:
    scene.policy()
    server = scene.web()
    server.start()
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def watching(namespace: str) -> Iterator[Callable[[], list[TCP]]]:
    """What arrives at a pod's interface."""
    with inside(namespace):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.ntohs(3))
        sniffer.bind(("eth0", 0))

    def seen() -> list[TCP]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, source = sniffer.recvfrom(65536)
                if source[2] != socket.PACKET_OUTGOING and TCP in Ether(packet):
                    found.append(Ether(packet)[TCP])
        return found

    with sniffer:
        yield seen


@FAMILIES
def test_keep_alive_until_the_forbidden_request(scene: Scene, web: Web, v6: bool) -> None:
    with watching(scene.client_node.pod_ns(scene.client)) as seen, scene.connect(v6) as client:
        for _ in range(3):
            status, body = client.ask("/ok")
            assert status == 200
            assert body.startswith(b"GET /ok HTTP/1.1")
        status, body = client.ask("/no")
        assert (status, body) == (403, b"Access denied\r\n")
        assert client.socket.recv(10) == b""
        client.socket.shutdown(socket.SHUT_WR)
        assert web.resets.acquire(timeout=TIMEOUT)
        assert not any("R" in str(packet.flags) for packet in seen())
    assert "GET /no HTTP/1.1" not in web.lines


@FAMILIES
def test_uploads_arrive_whole(scene: Scene, web: Web, v6: bool) -> None:
    body = bytes(range(256)) * 16384
    with scene.connect(v6) as client:
        status, answer = client.ask("/ok", "POST", f"Content-Length: {len(body)}\r\n", body)
        assert (status, answer.split()[-1].decode()) == (200, hashlib.sha256(body).hexdigest())
        parts = [body[at : at + 30000] for at in range(0, 1 << 20, 30000)]
        chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        status, answer = client.ask("/ok/chunked", "POST", "Transfer-Encoding: chunked\r\n", chunked)
        assert (status, answer.split()[-1].decode()) == (200, hashlib.sha256(b"".join(parts)).hexdigest())
        assert client.ask("/no")[0] == 403


def test_long_heads_in_super_packets(scene: Scene, web: Web) -> None:
    fields = "".join(f"X-{i}: {'y' * 200}\r\n" for i in range(75))
    with scene.connect() as client:
        assert client.ask("/ok", fields=fields)[0] == 200
        assert client.ask("/no", fields=fields)[0] == 403


@FAMILIES
def test_allowed_in_front_of_denied_in_one_packet(scene: Scene, web: Web, v6: bool) -> None:
    """The client's TCP sends again what was cut off, and the answers come in order."""
    with scene.connect(v6) as client:
        client.socket.sendall(b"GET /ok HTTP/1.1\r\n\r\nGET /no HTTP/1.1\r\n\r\n")
        status, body = client.answer()
        assert (status, body[:7]) == (200, b"GET /ok")
        assert client.answer() == (403, b"Access denied\r\n")
        assert client.socket.recv(1) == b""
    assert "GET /no HTTP/1.1" not in web.lines


def test_denied_uploads_get_their_answer(scene: Scene, web: Web) -> None:
    """The client is not cut off while it still sends."""
    with scene.connect() as client:
        body = b"x" * 100_000
        with contextlib.suppress(ConnectionError):
            client.socket.sendall(b"POST /no HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + body)
        assert client.answer()[0] == 403


def test_policy_goes_and_comes_under_open_connections(scene: Scene, web: Web) -> None:
    with scene.connect() as client:
        assert client.ask("/ok")[0] == 200
        scene.policy(l7=0)
        assert client.ask("/no")[0] == 200
        with scene.connect() as newer, scene.connect() as newest:
            assert newer.ask("/no")[0] == 200
            assert newest.ask("/ok")[0] == 200
            scene.policy()
            assert newer.ask("/no")[0] == 403
            with pytest.raises(ConnectionResetError):
                newest.ask("/ok")
        assert client.ask("/ok")[0] == 200
        assert client.ask("/no")[0] == 403
    with scene.connect() as again:
        assert again.ask("/ok")[0] == 200


def test_what_the_server_lost_comes_again(scene: Scene, web: Web) -> None:
    """A filter on the server's socket drops the first copy of a request that was inspected and passed."""
    with scene.connect() as client:
        assert client.ask("/ok")[0] == 200
        with web.deaf():
            client.socket.sendall(b"GET /ok HTTP/1.1\r\n\r\n")
        assert client.answer()[0] == 200
        assert client.ask("/ok")[0] == 200
        # A super-packet comes again in pieces, of which nobody knows that they are the same.
        with web.deaf():
            client.socket.sendall(b"GET /ok HTTP/1.1\r\nX: " + b"y" * 15000 + b"\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.answer()


def test_a_service_answers_under_its_own_address(scene: Scene, web: Web) -> None:
    scene.node.service(3, "10.96.0.10", 80, [(scene.server.ipv4, 80)])
    with Client(scene.client_node.pod_ns(scene.client), "10.96.0.10") as client:
        assert client.ask("/ok")[0] == 200
        assert client.ask("/no")[0] == 403
        assert client.socket.recv(1) == b""


@FAMILIES
def test_between_nodes(object_cache: Path, v6: bool) -> None:
    with contextlib.ExitStack() as stack:
        scene = Scene.between(object_cache, stack)
        web = scene.web()
        stack.callback(web.close)
        web.start()
        body = b"x" * 300_000
        with scene.connect(v6) as client:
            assert client.ask("/ok")[0] == 200
            assert client.ask("/ok", "POST", f"Content-Length: {len(body)}\r\n", body)[0] == 200
            assert client.ask("/no") == (403, b"Access denied\r\n")
            assert client.socket.recv(1) == b""
