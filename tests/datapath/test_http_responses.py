"""Requests and their responses, as the kernel reports them: one event with status and latency."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.agent.abi.events import HttpSubtype
from services.agent.abi.http import HttpWaiting
from services.model.verdict import DropReason
from tests.datapath.http_model import Rule
from tests.datapath.http_node import CLIENT, SERVER, Connection, HttpNode, serving
from tests.datapath.packets import tcp

pytestmark = pytest.mark.root

OK = b"GET /ok?secret=1 HTTP/1.1\r\nHost: x\r\n\r\n"
FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
ANSWERED, REQUEST = HttpSubtype.ANSWERED, HttpSubtype.REQUEST


@pytest.fixture(scope="module")
def module_http(object_cache: Path) -> Iterator[HttpNode]:
    with serving(object_cache, Rule("GET|POST", "/ok.*")) as http:
        yield http


@pytest.fixture
def node(module_http: HttpNode) -> HttpNode:
    module_http.reset()
    return module_http


class Talk(Connection):
    """A connection whose server answers."""

    def begin(self) -> Talk:
        self.open()
        self.sent = self.answered = 0
        return self

    def ask(self, payload: bytes) -> None:
        assert self.send(self.sent, payload, ack=1 + self.answered).passed
        self.sent += len(payload)

    def answer(self, payload: bytes, flags: str = "PA") -> None:
        ack = self.seq(self.sent)
        self.from_server(flags, payload, seq=self.server_isn + 1 + self.answered, ack=ack)
        self.answered += len(payload)


def told(node: HttpNode) -> list[tuple[int, int, str]]:
    return [(int(e["subtype"]), int(e["status"]), bytes(e["path"]).decode()) for e in node.http_events()]


def response(status: int, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


@FAMILIES
def test_a_request_and_its_response_are_one_event(node: HttpNode, v6: bool) -> None:
    talk = Talk(node, v6).begin()
    talk.ask(OK)
    assert told(node) == []
    time.sleep(0.02)
    talk.answer(response(404))
    (event,) = node.http_events()
    assert (event["subtype"], event["status"], event["drop_reason"]) == (ANSWERED, 404, 0)
    assert 20_000 <= event["latency_us"] < 5_000_000
    assert (bytes(event["method"]), bytes(event["path"]), event["path_len"]) == (b"GET", b"/ok", 3)
    assert (event["sport"], event["dport"]) == (talk.port, 80)
    assert (event["src_identity"], event["dst_identity"], event["rule_id"]) == (CLIENT, SERVER, 77)
    assert (event["endpoint_id"], event["direction"]) == (node.server.id, 1)
    # The same connection again: the path of the request before is gone.
    talk.ask(b"GET /okay HTTP/1.1\r\nHost: x\r\n\r\n")
    talk.answer(response(200))
    talk.ask(b"POST /ok HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
    talk.answer(b"HTTP/1.0 500 x\r\n\r\n")
    assert told(node) == [(ANSWERED, 200, "/okay"), (ANSWERED, 500, "/ok")]


def test_informational_responses_announce_another_one(node: HttpNode) -> None:
    talk = Talk(node).begin()
    talk.ask(b"POST /ok HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    talk.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    talk.answer(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    assert told(node) == []
    talk.ask(b"abc")
    talk.answer(response(201))
    assert told(node) == [(ANSWERED, 201, "/ok")]
    talk.ask(OK)
    talk.answer(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    assert told(node) == [(ANSWERED, 101, "/ok")]


@pytest.mark.parametrize(
    "text", [b"hello", b"HTTP/1.1 2", b"HTTP/2.0 200 x", b"HTTP/1.1 2x0 x", b"HTTP/1.1x200 ok", b""]
)
def test_what_is_no_status_line_answers_nothing(node: HttpNode, text: bytes) -> None:
    talk = Talk(node).begin()
    talk.ask(OK)
    talk.answer(text)
    assert told(node) == []
    talk.answer(response(204))
    assert told(node) == [(ANSWERED, 204, "/ok")]
    talk.answer(response(500))  # nobody asked
    assert told(node) == []


@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_a_server_that_closes_instead(node: HttpNode, flags: str) -> None:
    talk = Talk(node).begin()
    talk.ask(OK)
    talk.answer(b"", flags)
    assert told(node) == [(REQUEST, 0, "/ok")]
    talk.answer(response(200))
    assert told(node) == []


def test_a_last_response_with_its_fin(node: HttpNode) -> None:
    talk = Talk(node).begin()
    talk.ask(OK)
    talk.answer(response(200), "FPA")
    assert told(node) == [(ANSWERED, 200, "/ok")]


def test_a_client_that_gives_up(node: HttpNode) -> None:
    talk = Talk(node).begin()
    talk.ask(OK)
    talk.raw(tcp(talk.port, 80, "R", seq=talk.seq(talk.sent)))
    assert told(node) == [(REQUEST, 0, "/ok")]


def test_pipelined_requests_are_told_without_guessing_whose_response_it_is(node: HttpNode) -> None:
    talk = Talk(node).begin()
    talk.ask(OK + b"GET /ok/2 HTTP/1.1\r\n\r\n")
    assert told(node) == [(REQUEST, 0, "/ok"), (REQUEST, 0, "/ok/2")]
    talk.answer(response(200))
    talk.ask(OK)
    assert told(node) == [(REQUEST, 0, "/ok")]
    # Also over several packets.
    talk = Talk(node).begin()
    talk.ask(OK)
    talk.ask(b"GET /ok/2 HT")
    assert told(node) == []
    talk.ask(b"TP/1.1\r\n\r\n")
    assert told(node) == [(REQUEST, 0, "/ok"), (REQUEST, 0, "/ok/2")]
    assert {state.asked.waiting for state in node.states()} == {HttpWaiting.WAITS_NOT}


def test_a_denied_request_is_told_behind_the_one_before_it(node: HttpNode) -> None:
    talk = Talk(node).begin()
    talk.ask(OK)
    assert talk.send(talk.sent, b"GET /no HTTP/1.1\r\n\r\n").reset
    events = node.http_events()
    assert [(e["status"], e["drop_reason"]) for e in events] == [(0, 0), (403, DropReason.HTTP_DENIED)]


def test_an_answer_may_come_when_the_next_request_has_begun(node: HttpNode) -> None:
    talk = Talk(node).begin()
    talk.ask(OK)
    talk.ask(b"GET /ok/2 HT")
    talk.answer(response(200))
    talk.ask(b"TP/1.1\r\n\r\n")
    talk.answer(response(302))
    assert told(node) == [(ANSWERED, 200, "/ok"), (ANSWERED, 302, "/ok/2")]


def test_a_repeated_request_is_told_once(node: HttpNode) -> None:
    talk = Talk(node).begin()
    talk.ask(OK)
    assert talk.send(0, OK).passed
    talk.answer(response(200))
    assert talk.send(0, OK, ack=1 + talk.answered).passed
    assert told(node) == [(ANSWERED, 200, "/ok")]


UPGRADE = b"GET /ok HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
FRAME = b"\x81\x05hello"


@FAMILIES
def test_a_websocket_is_let_alone_once_the_server_agrees(node: HttpNode, v6: bool) -> None:
    talk = Talk(node, v6).begin()
    talk.ask(UPGRADE)
    talk.answer(SWITCHING)
    assert told(node) == [(ANSWERED, 101, "/ok")]
    talk.ask(FRAME)
    talk.answer(FRAME)
    talk.ask(b"GET /no HTTP/1.1\r\n\r\n")  # a message like any other
    assert told(node) == []


@pytest.mark.parametrize(
    "request_",
    [
        UPGRADE.replace(b"WebSocket", b"h2c"),
        UPGRADE.replace(b"WebSocket", b"websocket, h2c"),
        UPGRADE.replace(b"WebSocket", b"h2c, websocket"),
        UPGRADE.replace(b"WebSocket", b"websockets"),
        UPGRADE.replace(b"WebSocket", b"websocket\xe9"),
        UPGRADE.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\n\r\n"),
        UPGRADE.replace(b"Upgrade: WebSocket", b"Upgrade: h2c\r\nUpgrade: websocket"),
        UPGRADE.replace(b"Upgrade: WebSocket", b"Upgrades: websocket"),
        UPGRADE.replace(b"Host: x", b"Content-Length: 0"),
        OK,
    ],
)
def test_nothing_else_becomes_a_tunnel(node: HttpNode, request_: bytes) -> None:
    talk = Talk(node).begin()
    talk.ask(request_)
    talk.answer(SWITCHING)
    assert talk.send(talk.sent, FRAME, ack=1 + talk.answered).reset


def test_no_tunnel_before_the_server_agrees_or_where_another_response_could_look_so(node: HttpNode) -> None:
    talk = Talk(node).begin()
    talk.ask(UPGRADE)
    assert talk.send(talk.sent, FRAME).reset
    refused = Talk(node).begin()
    refused.ask(UPGRADE)
    refused.answer(response(426))
    assert refused.send(refused.sent, FRAME, ack=1 + refused.answered).reset
    # The second request of a connection: what begins with a status line may be the first one's body.
    second = Talk(node).begin()
    second.ask(OK)
    second.answer(response(200))
    second.ask(UPGRADE)
    second.answer(SWITCHING)
    assert second.send(second.sent, FRAME, ack=1 + second.answered).reset


@pytest.mark.parametrize("client_first", [True, False])
def test_connections_that_end_are_forgotten(node: HttpNode, client_first: bool) -> None:
    conns = node.map("http_conns")
    conns.delete_batch([key for key, _ in conns.items()])
    talk = Talk(node).begin()
    talk.ask(OK)
    talk.answer(response(200))
    assert len(node.states()) == 1
    if client_first:
        assert talk.send(talk.sent, b"", "FA", ack=1 + talk.answered).passed
        talk.sent += 1
        talk.answer(b"", "FA")
        assert len(node.states()) == 1
        assert talk.send(talk.sent, b"", "A", ack=2 + talk.answered).passed
    else:
        talk.answer(b"", "FA")
        assert talk.send(talk.sent, b"", "FA", ack=2 + talk.answered).passed
        talk.sent += 1
        assert len(node.states()) == 1
        talk.answered += 1
        talk.answer(b"", "A")
    assert node.states() == []
    assert not talk.send(talk.sent, OK).passed
