"""Ports whose requests are told without any policy: nothing is refused, delayed or trusted there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.all import TCP

from services.agent.abi.config import ConfigFlags
from services.agent.abi.endpoints import EndpointFlags
from services.agent.abi.events import HttpSubtype
from services.agent.abi.http import HttpVisibleKey
from services.agent.abi.layout import be16
from services.agent.http_policy import HttpPolicy
from services.model.verdict import Direction
from tests.datapath.http_model import Rule
from tests.datapath.http_node import Connection, HttpNode, serving
from tests.datapath.node import u32
from tests.datapath.packets import tcp

pytestmark = pytest.mark.root

OK = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"
NO = b"GET /no HTTP/1.1\r\nHost: x\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def module_http(object_cache: Path) -> Iterator[HttpNode]:
    with serving(object_cache, Rule("GET", "/ok")) as http:
        maps = {name: http.map(name) for name in ("http_grammar", "http_tables", "http_config", "http_visible")}
        HttpPolicy(maps, [8080, 8081])
        HttpPolicy(maps, [80])  # as after a restart with another configuration
        assert list(http.map("http_visible").items()) == [(u32(be16(80)), u32(1))]
        yield http


@pytest.fixture
def node(module_http: HttpNode) -> HttpNode:
    module_http.reset()
    module_http.settings(flags=ConfigFlags.HTTP_VISIBLE)
    module_http.policy(l7=0)
    return module_http


def told(node: HttpNode) -> list[tuple[bytes, int, int]]:
    return [(bytes(e["path"]), int(e["status"]), int(e["drop_reason"])) for e in node.http_events()]


def answer(connection: Connection, sent: int, at: int = 0) -> None:
    connection.from_server("PA", RESPONSE, seq=connection.server_isn + 1 + at, ack=connection.seq(sent))


@pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
def test_requests_are_told_with_their_responses(node: HttpNode, v6: bool) -> None:
    connection = Connection(node, v6).open()
    assert connection.send(0, NO).passed
    answer(connection, len(NO))
    (event,) = node.http_events()
    assert (bytes(event["path"]), event["status"], event["subtype"]) == (b"/no", 200, HttpSubtype.ANSWERED)
    assert connection.send(len(NO), b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", ack=1 + len(RESPONSE)).passed
    connection.from_server("RA", seq=connection.server_isn + 1, ack=connection.seq(0))
    assert told(node) == [(b"/a", 0, 0)]


@pytest.mark.parametrize("direction", [Direction.INGRESS, Direction.EGRESS])
def test_ports_of_single_pods(node: HttpNode, direction: Direction) -> None:
    node.settings()
    pod, other = (node.server, node.client) if direction == Direction.INGRESS else (node.client, node.server)
    for port, who in ((80, pod), (81, other)):
        key = HttpVisibleKey(endpoint=who.id, port=be16(port), direction=direction)
        node.map("http_visible_pods").update(key.pack(), u32(1))
        who.flags = EndpointFlags.VISIBLE
        node.change_policy(who)
    connection = Connection(node).open()
    assert connection.send(0, NO).passed
    answer(connection, len(NO))
    events = node.http_events()
    assert [(bytes(e["path"]), int(e["status"]), int(e["direction"])) for e in events] == [(b"/no", 200, direction)]
    pod.flags = 0
    node.change_policy(pod)
    connection = Connection(node).open()
    assert connection.send(0, NO).passed
    answer(connection, len(NO))
    assert told(node) == []


def test_other_ports_and_no_flag_tell_nothing(node: HttpNode) -> None:
    node.settings()
    connection = Connection(node).open()
    assert connection.send(0, OK).passed
    answer(connection, len(OK))
    assert told(node) == []


HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OTHERS = [b"\x16\x03\x01\x02\x00", HTTP2, b"GET /a\r\n", b"GET /a HTTP/1.1\nX: y\n\n", b"\0" * 50]


@pytest.mark.parametrize("stream", OTHERS, ids=["tls", "http2", "http0.9", "bare lf", "binary"])
def test_what_is_no_http_passes(node: HttpNode, stream: bytes) -> None:
    connection = Connection(node).open()
    offset = 0
    for payload in (stream, stream, b"hello"):
        outcome = connection.send(offset, payload)
        assert outcome.passed
        assert outcome.payload == payload
        offset += len(payload)
    assert told(node) == []
    assert node.answers() == []
    # And where a request begins later it is told.
    assert connection.send(offset, OK).passed
    answer(connection, offset + len(OK))
    assert told(node) == [(b"/ok", 200, 0)]


def test_any_order_passes(node: HttpNode) -> None:
    connection = Connection(node).open()
    assert connection.send(10, OK[10:]).passed
    assert connection.send(0, OK[:10]).passed
    assert connection.send(0, NO[:20]).passed
    assert connection.send(5, b"whatever it is").passed
    assert connection.send(3, b"", "FA").passed
    assert connection.send(0, OK, "PAU", urgptr=3).passed
    assert connection.raw(tcp(connection.port, 80, "S", OK, seq=1)).passed


def test_connections_older_than_the_wish_are_told(node: HttpNode) -> None:
    node.settings()
    connection = Connection(node).open()
    assert connection.send(0, OK).passed
    node.settings(flags=ConfigFlags.HTTP_VISIBLE)
    node.change_policy(node.server)
    assert connection.send(len(OK), OK).passed
    answer(connection, 2 * len(OK))
    assert told(node) == [(b"/ok", 200, 0)]


def test_what_was_only_watched_is_not_trusted_by_a_policy(node: HttpNode) -> None:
    """A packet passed uninspected: what the server makes of the next ones nobody knows."""
    connection = Connection(node).open()
    late = NO[4:]
    assert connection.send(4, late).passed
    node.policy()
    assert connection.send(0, b"POST /ok HTTP/1.1\r\nContent-Length: 99\r\n\r\n"[:4]).reset
    fresh = Connection(node).open()
    assert fresh.send(0, OK).passed
    assert fresh.send(len(OK), NO).reset


def test_what_was_read_whole_goes_on_under_a_policy(node: HttpNode) -> None:
    """Watched from its first byte, and everything in order and well-formed: it is known where requests begin."""
    connection = Connection(node).open()
    upload = b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhel"
    assert connection.send(0, NO).passed
    answer(connection, len(NO))
    assert connection.send(len(NO), upload, ack=1 + len(RESPONSE)).passed
    told(node)
    node.policy()
    at = len(NO) + len(upload)
    assert connection.send(at, b"lo" + OK, ack=1 + len(RESPONSE)).passed
    answer(connection, at + 2 + len(OK), at=len(RESPONSE))
    assert connection.send(at + 2 + len(OK), NO, ack=1 + 2 * len(RESPONSE)).reset
    (refused,) = node.answers()
    assert bytes(refused[TCP].payload).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("how", ["data on the syn", "fin ahead", "urgent", "not http", "later"])
def test_what_was_not_read_whole_does_not(node: HttpNode, how: str) -> None:
    connection, at = Connection(node), 0
    if how == "data on the syn":
        assert connection.raw(tcp(connection.port, 80, "S", b"POST /x HTTP/1.1\r\n", seq=connection.isn)).passed
        connection.from_server("SA", seq=connection.server_isn, ack=connection.seq(18))
        at = 18
    else:
        connection.open()
    if how == "fin ahead":
        assert connection.send(len(OK) - 5, b"", "FA").passed
    if how == "urgent":
        assert connection.send(0, OK, "PAU", urgptr=3).passed
        at = len(OK)
    if how == "not http":
        assert connection.send(0, b"hello").passed
        at = 5
    if how == "later":
        node.map("http_conns").delete_batch([key for key, _ in node.map("http_conns").items()])
        assert connection.send(0, OK).passed
        at = len(OK)
    node.policy()
    assert connection.send(at, OK).reset


def test_data_on_a_syn_while_no_policy_holds_is_remembered(node: HttpNode) -> None:
    node.settings()
    node.policy()
    connection = Connection(node)
    connection.raw(tcp(connection.port, 80, "S", seq=connection.isn))
    node.policy(l7=0)
    assert connection.raw(tcp(connection.port, 80, "S", b"GET /no HTTP/1.1\r\n", seq=connection.isn)).passed
    connection.from_server("SA", seq=connection.server_isn, ack=connection.seq(18))
    node.policy()
    assert connection.send(18, OK).reset


def test_a_policy_on_the_port_comes_first(node: HttpNode) -> None:
    node.policy()
    connection = Connection(node).open()
    assert connection.send(0, NO).reset
    node.policy(l7=0)
    other = Connection(node).open()
    assert other.send(0, NO).passed
    assert [bytes(answer[TCP].payload)[:12] for answer in node.answers()] == [b"HTTP/1.1 403"]
