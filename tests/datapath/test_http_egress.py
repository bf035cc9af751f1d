"""HTTP rules of clients: to servers of any kind, beside the server's own rules, and on real sockets."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.all import TCP

from services.agent.abi.conntrack import CtFlags
from services.agent.abi.endpoints import EndpointFlags
from services.agent.abi.events import HttpSubtype
from services.model.verdict import Direction, DropReason
from tests.datapath import dns_node
from tests.datapath.dns_node import Asker, Names
from tests.datapath.http_model import Rule
from tests.datapath.http_node import CLIENT, RULESET, SERVER, Connection, HttpNode, serving
from tests.datapath.node import TC_ACT_OK, TC_ACT_SHOT
from tests.datapath.packets import checksums_hold, from_pod, parse, tcp, to_pod
from tests.datapath.test_http_sockets import Client, Scene

pytestmark = pytest.mark.root

RULES = (Rule("GET|POST", "/ok(/.*)?"),)
STRICTER = 6
OK = b"GET /ok HTTP/1.1\r\n\r\n"
MORE = b"GET /ok/more HTTP/1.1\r\n\r\n"
NO = b"GET /no HTTP/1.1\r\n\r\n"
ANSWER = b"HTTP/1.1 204 Fine\r\n\r\n"
WORLD, SITE, SITE6 = 2, "203.0.113.44", "2001:db8::44"
FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
_ports = itertools.count(30000)


@pytest.fixture(scope="module")
def module_http(object_cache: Path) -> Iterator[HttpNode]:
    with serving(object_cache, *RULES, side=Direction.EGRESS) as http:
        yield http


@pytest.fixture
def node(module_http: HttpNode) -> HttpNode:
    module_http.reset()
    module_http.rules(*RULES)
    return module_http


def told(node: HttpNode) -> list[tuple[int, int, int, int]]:
    """(direction, rule, status, drop reason) of the requests since the last look."""
    names = ("direction", "rule_id", "status", "drop_reason")
    return [tuple(int(event[name]) for name in names) for event in node.http_events()]  # type: ignore[misc]


class Outside:
    """A connection of the client's to a server that is no pod."""

    def __init__(self, node: HttpNode, site: str) -> None:
        self.node, self.site, self.port, self.sent = node, site, next(_ports), 0
        assert self._send(tcp(self.port, 80, "S", seq=1000)).verdict == TC_ACT_OK
        assert self.hear(b"", "SA") == TC_ACT_OK

    def _send(self, l4: Any) -> Any:
        return self.node.run("from_endpoint", from_pod(self.node.client, self.site, l4), self.node.client.ifindex)

    def ask(self, payload: bytes) -> Any:
        result = self._send(tcp(self.port, 80, "PA", payload, seq=1001 + self.sent, ack=5001))
        self.sent += len(payload)
        return result

    def hear(self, payload: bytes, flags: str = "PA", ack: int | None = None) -> int:
        l4 = tcp(80, self.port, flags, payload, seq=5000 if "S" in flags else 5001, ack=ack or 1001 + self.sent)
        packet = to_pod(self.node.client, self.site, l4)
        return self.node.run("to_endpoint", packet, self.node.client.ifindex).verdict


@FAMILIES
def test_a_server_outside(node: HttpNode, v6: bool) -> None:
    site = SITE6 if v6 else SITE
    node.ipcache("::/0" if v6 else "0.0.0.0/0", WORLD)
    node.rule(node.client, Direction.EGRESS, WORLD, 6, 80, rule_id=41, l7=RULESET)
    connection = Outside(node, site)
    assert connection.ask(OK).verdict == TC_ACT_OK
    assert connection.hear(ANSWER) == TC_ACT_OK
    (event,) = node.http_events()
    assert (event["direction"], event["rule_id"], event["status"], event["endpoint_id"]) == (2, 41, 204, 1)
    assert (event["src_identity"], event["dst_identity"], event["dport"]) == (CLIENT, WORLD, 80)
    assert event["subtype"] == HttpSubtype.ANSWERED
    assert bytes(event["saddr"])[-1] == 1

    denied = connection.ask(NO)
    assert denied.verdict == TC_ACT_OK
    reset = parse(denied.packet)
    assert str(reset[TCP].flags) == "RA"
    assert reset[TCP].seq == 1001 + len(OK)
    assert checksums_hold(denied.packet)
    (answer,) = node.answers()
    assert bytes(answer[TCP].payload).startswith(b"HTTP/1.1 403 Forbidden")
    assert checksums_hold(bytes(answer))
    assert told(node) == [(2, 41, 403, DropReason.HTTP_DENIED)]
    assert connection.hear(b"HTTP/1.1 200 Too late\r\n\r\n") == TC_ACT_SHOT


def test_a_server_that_is_allowed_by_name(node: HttpNode) -> None:
    names = Names(node)
    names.write({dns_node.RULESET: ["*"]}, ["*.example.com"])
    pod = Asker(node, names)
    pod.allow({"*.example.com"}, port=80, rule_id=43, l7=RULESET)
    asked = dns_node.question("www.example.com")
    pod.ask(asked)
    assert pod.hear(dns_node.answer(asked, [dns_node.record(SITE)])).verdict == TC_ACT_OK
    connection = Outside(node, SITE)
    assert parse(connection.ask(OK).packet)[TCP].flags == "PA"
    assert connection.hear(ANSWER) == TC_ACT_OK
    assert str(parse(connection.ask(NO).packet)[TCP].flags) == "RA"
    assert told(node) == [(2, 43, 204, 0), (2, 43, 403, DropReason.HTTP_DENIED)]
    assert pod.connect("203.0.113.45", port=80) == TC_ACT_SHOT
    names.close()


def test_who_is_allowed_plainly_is_not_looked_into(node: HttpNode) -> None:
    node.ipcache("0.0.0.0/0", WORLD)
    node.rule(node.client, Direction.EGRESS, WORLD, 6, 80)
    known = len(node.states())
    connection = Outside(node, SITE)
    assert connection.ask(NO).verdict == TC_ACT_OK
    assert told(node) == []
    assert len(node.states()) == known


def test_both_sides_have_to_allow(node: HttpNode) -> None:
    """Each turn tells of a request what it said of it, and by which rule."""
    node.rule(node.server, Direction.INGRESS, CLIENT, 6, 80, rule_id=88, l7=STRICTER)
    node.change_policy(node.server)
    compiled = {RULESET: RULES, STRICTER: (Rule("GET", "/ok"),)}
    node.compile(compiled)
    connection = Connection(node).open()
    assert connection.send(0, OK).passed
    connection.from_server("PA", ANSWER, seq=5001, ack=connection.seq(len(OK)))
    assert sorted(told(node)) == [(1, 88, 204, 0), (2, 77, 204, 0)]
    # The client may, the server does not take it.
    assert connection.send(len(OK), MORE, ack=1 + len(ANSWER)).reset
    assert (1, 88, 403, DropReason.HTTP_DENIED) in told(node)
    # The client may not; the server hears of it that the connection is over.
    connection = Connection(node).open()
    assert connection.send(0, NO).reset
    assert told(node) == [(2, 77, 403, DropReason.HTTP_DENIED)]
    server = next(e for key, e in node.conntrack().items() if e.endpoint_id == 2 and e.flags & CtFlags.RST)
    assert server.direction == Direction.INGRESS


def test_the_connection_ends_for_conntrack_too(node: HttpNode) -> None:
    """The answer goes past the hooks, so that it has to be told."""
    connection = Connection(node).open()
    assert connection.send(0, NO).reset
    entry = next(e for e in node.conntrack().values() if e.endpoint_id == 1)
    assert entry.flags & CtFlags.FIN_REPLY


def test_answers_come_from_the_address_that_was_asked(node: HttpNode) -> None:
    node.service(3, "10.96.0.10", 80, [(node.server.ipv4, 80)])
    port = next(_ports)

    def send(flags: str, seq: int, payload: bytes = b"") -> Any:
        l4 = tcp(port, 80, flags, payload, seq=seq, ack=5001 if "A" in flags else 0)
        return node.run("from_endpoint", from_pod(node.client, "10.96.0.10", l4), node.client.ifindex)

    def serve(flags: str, ack: int) -> None:
        l4 = tcp(80, port, flags, seq=5000, ack=ack)
        node.run("from_endpoint", from_pod(node.server, node.client.ipv4, l4), node.server.ifindex)

    send("S", 1000)
    serve("SA", 1001)
    send("PA", 1001, NO)
    (answer,) = node.answers()
    assert (answer.src, answer["IP"].src, answer[TCP].sport) == ("02:00:00:00:ff:01", "10.96.0.10", 80)
    assert checksums_hold(bytes(answer))


def test_an_audited_client_is_refused_nothing(node: HttpNode) -> None:
    node.client.flags = EndpointFlags.AUDIT
    node.change_policy(node.client)
    connection = Connection(node).open()
    assert connection.send(0, NO).passed
    connection.from_server("PA", ANSWER, seq=5001, ack=connection.seq(len(NO)))
    (event,) = node.http_events()
    assert (event["direction"], event["drop_reason"]) == (2, DropReason.HTTP_DENIED)
    assert not node.answers()


def test_a_connection_older_than_the_rules(node: HttpNode) -> None:
    node.policy(l7=0)
    connection = Connection(node).open()
    assert connection.send(0, OK).passed
    node.policy()
    assert connection.send(len(OK), OK).reset
    (answer,) = node.answers()
    assert "R" in str(answer[TCP].flags)


@pytest.fixture(scope="module")
def scene(object_cache: Path) -> Iterator[Scene]:
    """Both have rules; the client's are stricter by a path."""
    with contextlib.ExitStack() as stack:
        made = Scene.between(object_cache, stack)
        made.client_node.rule(made.client, Direction.EGRESS, SERVER, 6, 80, rule_id=41, l7=STRICTER)
        made.client_node.change_policy(made.client)
        made.rules(Rule("GET|POST", "/ok(/.*)?"), others={STRICTER: (Rule("GET|POST", "/ok"), Rule("GET", "/free"))})
        web = made.web()
        stack.callback(web.close)
        web.start()
        yield made


@FAMILIES
@pytest.mark.parametrize("plain", [False, True], ids=["both", "of the client alone"])
def test_between_nodes(scene: Scene, v6: bool, plain: bool) -> None:
    scene.policy(l7=0 if plain else 9)
    body = b"x" * 300_000
    with scene.connect(v6) as client:
        assert client.ask("/ok")[0] == 200
        status, said = client.ask("/ok", "POST", f"Content-Length: {len(body)}\r\n", body)
        assert (status, said.split()[-1].decode()) == (200, hashlib.sha256(body).hexdigest())
        assert client.ask("/free")[0] == (200 if plain else 403)
    with scene.connect(v6) as client:
        assert client.ask("/ok/more") == (403, b"Access denied\r\n")
        assert client.socket.recv(1) == b""
        client.socket.shutdown(socket.SHUT_WR)


def test_long_heads_pass_both_turns(scene: Scene) -> None:
    scene.policy()
    fields = "".join(f"X-{i}: {'y' * 200}\r\n" for i in range(75))
    with scene.connect() as client:
        assert client.ask("/ok", fields=fields)[0] == 200
        assert client.ask("/no", fields=fields)[0] == 403


def test_a_service_between_nodes(scene: Scene) -> None:
    scene.policy()
    scene.client_node.service(3, "10.96.0.10", 80, [(scene.server.ipv4, 80)])
    with Client(scene.client_node.pod_ns(scene.client), "10.96.0.10") as client:
        assert client.ask("/ok")[0] == 200
        assert client.ask("/no") == (403, b"Access denied\r\n")
