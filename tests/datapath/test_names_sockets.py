"""Rules about names on real sockets: checksums, segmentation and offloads are the kernel's own here."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest

from services.agent.abi.names import L7Kind
from services.common.authority import issue, make_authority
from services.model.verdict import Direction
from tests.datapath.dns_node import Names, answer, question, record
from tests.datapath.node import inside
from tests.datapath.wire import WiredNode

pytestmark = pytest.mark.root
CLIENT, SERVER = 1001, 1002
DNS, TLS = 1, 2
GUARDED = 8443
"""A port where the server's own rules ask for names, on ingress; at 443 the client's do."""
VIPS = {False: "10.96.0.10", True: "fd00:10:96::10"}
UDP_SEGMENT = 103
TIMEOUT = 3.0
GOOD, BAD = "api.example.com", "evil.test"


class Servers:
    """A DNS server (UDP and TCP) and a TLS server in the server pod; `seen` are the names that were asked for."""

    def __init__(self, namespace: str, folder: Path) -> None:
        make_authority(folder)
        files = issue(folder, "web", hosts=[GOOD, BAD])
        self.context = ssl.create_default_context(cafile=files.ca)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(files.cert, files.key)
        self.seen: list[bytes] = []
        with inside(namespace):
            self._udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._tcp = [socket.socket(socket.AF_INET6) for _ in range(3)]
        self._udp.bind(("::", 53))
        for sock, port in zip(self._tcp, (53, 443, GUARDED), strict=True):
            sock.bind(("::", port))
            sock.listen(8)
        for work in (self._datagrams, self._streams):
            threading.Thread(target=work, daemon=True).start()
        for sock in self._tcp[1:]:
            threading.Thread(target=self._handshakes, args=(sock,), daemon=True).start()

    def _reply(self, asked: bytes) -> bytes:
        self.seen.append(asked[12:])
        return answer(asked, [record("203.0.113.5")])

    def _datagrams(self) -> None:
        while True:
            try:
                asked, peer = self._udp.recvfrom(2048)
            except OSError:
                return
            self._udp.sendto(self._reply(asked), peer)

    def _streams(self) -> None:
        while True:
            try:
                connection, _ = self._tcp[0].accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with connection, connection.makefile("rb") as stream:
                    while head := stream.read(2):
                        reply = self._reply(stream.read(struct.unpack(">H", head)[0]))
                        whole = struct.pack(">H", len(reply)) + reply
                        for piece in (whole[:1], whole[1:30], whole[30:-3], whole[-3:]):  # a segment each
                            connection.sendall(piece)
            except ConnectionError:
                continue
            except OSError:
                return

    def _handshakes(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with self._tls.wrap_socket(connection, server_side=True) as secured:
                    secured.sendall(b"hello")
            except OSError:
                continue

    def close(self) -> None:
        for sock in (self._udp, *self._tcp):
            sock.close()


@pytest.fixture(scope="module")
def place(object_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WiredNode, Servers]]:
    node = WiredNode(object_cache, 1)
    try:
        client, server = node.add_pod(1, CLIENT), node.add_pod(2, SERVER)
        node.settings()
        Names(node).write({DNS: ["*.example.com"], TLS: [GOOD]}, ["*.example.com"])
        for protocol in (6, 17):
            node.rule(client, Direction.EGRESS, SERVER, protocol, 53, l7=L7Kind.DNS.ruleset(DNS))
        node.rule(client, Direction.EGRESS, SERVER, 6, 443, l7=L7Kind.TLS.ruleset(TLS))
        node.rule(client, Direction.EGRESS, SERVER, 6, GUARDED)
        node.open(server)
        node.rule(server, Direction.INGRESS, CLIENT, 6, GUARDED, l7=L7Kind.TLS.ruleset(TLS), precedence=3)
        # Without socket hooks here, Services are translated packet by packet.
        for number, v6 in enumerate((False, True)):
            for port in (53, 443, GUARDED):
                for protocol in (6, 17) if port == 53 else (6,):
                    backends = [(server.ipv6 if v6 else server.ipv4, port)]
                    node.service(40 + 8 * number + port % 7, VIPS[v6], port, backends, protocol)
        servers = Servers(node.pod_ns(server), tmp_path_factory.mktemp("tls"))
        yield node, servers
        servers.close()
    finally:
        node.close()


def client_socket(
    node: WiredNode, kind: socket.SocketKind, v6: bool, port: int, *, service: bool = False
) -> socket.socket:
    server = node.pods[2]
    with inside(node.pod_ns(node.pods[1])):
        sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind)
    sock.settimeout(TIMEOUT)
    sock.connect((VIPS[v6] if service else server.ipv6 if v6 else server.ipv4, port))
    return sock


FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
PLACES = pytest.mark.parametrize("service", [False, True], ids=["pod", "service"])


@FAMILIES
@PLACES
def test_datagrams(place: tuple[WiredNode, Servers], v6: bool, service: bool) -> None:
    node, servers = place
    with client_socket(node, socket.SOCK_DGRAM, v6, 53, service=service) as sock:
        sock.send(question(GOOD, edns=True))
        assert struct.unpack_from(">4H", sock.recv(512))[3] == 1
        sock.send(question(BAD, number=9, edns=True))
        refused = sock.recv(512)
        assert struct.unpack_from(">2H", refused) == (9, 0x8105)
    assert not any(b"evil" in name for name in servers.seen)


def test_a_super_packet_carries_no_questions(place: tuple[WiredNode, Servers]) -> None:
    node, servers = place
    good, bad = question("aaa.example.com"), question("aa.evil.example")
    assert len(good) == len(bad)
    with client_socket(node, socket.SOCK_DGRAM, False, 53) as sock:
        sock.settimeout(0.5)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(good))
        sock.send(good + bad)
        with pytest.raises(TimeoutError):
            sock.recv(512)
    assert not any(b"evil" in name for name in servers.seen)


@FAMILIES
@PLACES
def test_streams(place: tuple[WiredNode, Servers], v6: bool, service: bool) -> None:
    node, servers = place
    with client_socket(node, socket.SOCK_STREAM, v6, 53, service=service) as sock, sock.makefile("rb") as stream:
        for number in range(5):
            asked = question(GOOD, number=number)
            sock.send(struct.pack(">H", len(asked)))
            sock.send(asked)
            reply = stream.read(struct.unpack(">H", stream.read(2))[0])
            assert struct.unpack_from(">H", reply)[0] == number
            assert any(
                key == b"\0" * 10 + b"\xff\xff" + bytes([203, 0, 113, 5]) for key, _ in node.map("fqdn_ips").items()
            )
        sock.setblocking(False)
        refused = dns.query.tcp(dns.message.make_query(BAD, "AAAA", use_edns=True), "", TIMEOUT, sock=sock)
        assert refused.rcode() == dns.rcode.REFUSED
        sock.settimeout(TIMEOUT)
        assert sock.recv(1) == b""
    assert not any(b"evil" in name for name in servers.seen)
    deadline = time.monotonic() + TIMEOUT
    while (left := established(node)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def established(node: WiredNode) -> list[str]:
    """The server's connections that are open."""
    with inside(node.pod_ns(node.pods[2])):
        tables = [Path(f"/proc/thread-self/net/{name}").read_text(encoding="ascii") for name in ("tcp", "tcp6")]
    lines = "".join(tables).splitlines()
    return [line for line in lines if line.split()[3] == "01"]


@FAMILIES
@PLACES
def test_streams_with_several_questions_at_once(place: tuple[WiredNode, Servers], v6: bool, service: bool) -> None:
    """What may be asked is answered before the refusal, however the kernel's TCP cuts and repeats it."""
    node, servers = place
    asked = [GOOD] * 4 + [BAD] * 2 + [GOOD]
    queries = [question(name, number=number) for number, name in enumerate(asked)]
    with client_socket(node, socket.SOCK_STREAM, v6, 53, service=service) as sock, sock.makefile("rb") as stream:
        sock.sendall(b"".join(struct.pack(">H", len(each)) + each for each in queries))
        whole, heard = stream.read(), []
    while whole:
        size = struct.unpack_from(">H", whole)[0]
        heard.append(struct.unpack_from(">HH", whole, 2))
        whole = whole[2 + size :]
    assert heard == [(0, 0x8180), (1, 0x8180), (2, 0x8180), (3, 0x8180), (4, 0x8105), (5, 0x8105)]
    assert not any(b"evil" in name for name in servers.seen)


def test_streams_full_of_questions(place: tuple[WiredNode, Servers]) -> None:
    """Many in a segment, and the next segment before all of the first is answered."""
    node, _ = place
    queries = [question(GOOD, number=number) for number in range(120)]
    with client_socket(node, socket.SOCK_STREAM, False, 53) as sock, sock.makefile("rb") as stream:
        for at in range(0, len(queries), 40):
            sock.sendall(b"".join(struct.pack(">H", len(each)) + each for each in queries[at : at + 40]))
        for number in range(len(queries)):
            reply = stream.read(struct.unpack(">H", stream.read(2))[0])
            assert struct.unpack_from(">H", reply)[0] == number


@FAMILIES
@PLACES
@pytest.mark.parametrize("port", [443, GUARDED], ids=["egress", "ingress"])
def test_handshakes(place: tuple[WiredNode, Servers], v6: bool, service: bool, port: int) -> None:
    node, servers = place

    def connection() -> socket.socket:
        return client_socket(node, socket.SOCK_STREAM, v6, port, service=service)

    with servers.context.wrap_socket(connection(), server_hostname=GOOD) as secured:
        assert secured.recv(16) == b"hello"
    with pytest.raises(ConnectionResetError):
        servers.context.wrap_socket(connection(), server_hostname=BAD)
    with connection() as plain:
        plain.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            plain.recv(16)
