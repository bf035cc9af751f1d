"""TCP's tricks: whatever a client sends in whatever order, what the server can put together was inspected.

The last test is an adversary: random segments, some of which the server loses (a bad checksum, an old timestamp, a full
queue), acknowledgements that come late; the stream that the server assembles is judged by the reference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.all import IP, TCP

from services.model.verdict import Direction, DropReason
from tests.datapath.http_model import Rule, allow_by, judge
from tests.datapath.http_node import Connection, HttpNode, Outcome, serving
from tests.datapath.node import GATEWAY_MAC
from tests.datapath.packets import checksums_hold, raw, tcp

pytestmark = pytest.mark.root

RULES = (Rule("GET|POST", "/ok(/.*)?"),)
ALLOW = allow_by(*RULES)
OK = b"GET /ok HTTP/1.1\r\n\r\n"
NO = b"GET /no HTTP/1.1\r\n\r\n"
FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module", params=[Direction.INGRESS, Direction.EGRESS], ids=["of the server", "of the client"])
def module_http(object_cache: Path, request: pytest.FixtureRequest) -> Iterator[HttpNode]:
    with serving(object_cache, *RULES, side=request.param) as http:
        yield http


@pytest.fixture
def node(module_http: HttpNode) -> HttpNode:
    module_http.reset()
    return module_http


def last_drop(node: HttpNode) -> int:
    return int(node.events()[-1]["drop_reason"])


def out_of_order(node: HttpNode, outcome: Outcome) -> bool:
    return outcome.dropped and last_drop(node) == DropReason.HTTP_OUT_OF_ORDER


@FAMILIES
def test_denied_request_is_answered_and_the_server_reset(node: HttpNode, v6: bool) -> None:
    connection = Connection(node, v6).open()
    assert connection.send(0, OK).passed
    denied = connection.send(len(OK), NO, ack=101)
    assert denied.reset
    assert denied.packet[TCP].seq == connection.seq(len(OK))
    assert checksums_hold(bytes(denied.packet))
    assert denied.packet.dst == node.server.mac
    (answer,) = node.answers()
    assert str(answer[TCP].flags) == "FPA"
    assert (answer[TCP].seq, answer[TCP].ack) == (connection.server_isn + 101, connection.seq(len(OK + NO)))
    assert (answer[TCP].sport, answer[TCP].dport) == (80, connection.port)
    head, body = bytes(answer[TCP].payload).split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert body == b"Access denied\r\n"
    assert checksums_hold(bytes(answer))
    if node.side == Direction.EGRESS:
        assert answer.src == GATEWAY_MAC
        assert answer.dst == node.client.mac
        return
    assert answer.src == node.server.mac

    # It enters the node like the server's own, and only then leaves for the client.
    as_server = node.run("from_endpoint", bytes(answer), node.server.ifindex, mark=0xC1110004)
    assert as_server.packet[:6] == bytes.fromhex(node.client.mac.replace(":", ""))


@FAMILIES
def test_the_client_closes_in_peace(node: HttpNode, v6: bool) -> None:
    """After a denial the kernel stands in for the server: no reset for the client."""
    connection = Connection(node, v6).open()
    connection.send(0, NO)
    (answer,) = node.answers()
    end = answer[TCP].seq + len(answer[TCP].payload) + 1 - connection.server_isn
    assert connection.send(len(NO), b"", "A", ack=end).dropped
    assert node.answers() == []
    assert connection.send(len(NO), b"", "FA", ack=end).dropped
    (acknowledged,) = node.answers()
    assert str(acknowledged[TCP].flags) == "A"
    assert acknowledged[TCP].ack == connection.seq(len(NO) + 1)
    assert acknowledged[TCP].seq == connection.server_isn + end
    assert checksums_hold(bytes(acknowledged))
    # The server is not heard any more.
    assert connection.acknowledge(len(NO)) == 2
    # A lost answer is given again.
    again = Connection(node, v6).open()
    again.send(0, NO)
    again.send(0, NO)
    first, second = node.answers()
    assert bytes(raw(first)) == bytes(raw(second))
    # What was on its way is acknowledged.
    end = second[TCP].seq + len(second[TCP].payload) + 1 - again.server_isn
    assert again.send(len(NO), b"x" * 100, ack=end).dropped
    assert node.answers()[0][TCP].ack == again.seq(len(NO) + 100)
    # The same ports can be used again.
    assert again.raw(tcp(again.port, 80, "S", seq=77)).passed
    again.from_server("SA", seq=99, ack=78)
    again.isn, again.server_isn = 77, 99
    assert again.send(0, OK).passed


def test_answers_carry_timestamps_and_fit_the_method(node: HttpNode) -> None:
    connection = Connection(node).open()
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1111, 2222))]
    connection.send(0, b"HEAD /no HTTP/1.1\r\n\r\n", options=options)
    (answer,) = node.answers()
    assert ("Timestamp", (2222, 1111)) in answer[TCP].options
    assert bytes(answer[TCP].payload).endswith(b"\r\n\r\n")
    assert checksums_hold(bytes(answer))


def test_only_the_servers_syn_ack_opens_state(node: HttpNode) -> None:
    """A client's SYN on an open connection proves nothing: the server answers with a challenge and goes on."""
    connection = Connection(node).open()
    body = b"POST /ok HTTP/1.1\r\nContent-Length: 100\r\n\r\n"
    assert connection.send(0, body).passed
    inside = connection.seq(len(body))
    assert connection.raw(tcp(connection.port, 80, "S", seq=inside - 1)).passed
    assert connection.send(len(body), NO).passed  # body, not a request
    # The same ports and the same first number, but another server socket: nothing of before counts.
    reused = Connection(node, port=connection.port, server_isn=999)
    reused.acknowledge(500)
    reused.open()
    assert reused.send(0, NO).reset


def test_data_on_a_syn_and_urgent_data(node: HttpNode) -> None:
    connection = Connection(node)
    assert out_of_order(node, connection.raw(tcp(connection.port, 80, "S", OK, seq=connection.isn)))
    connection.open()
    assert connection.send(0, OK, "PAU", urgptr=3).dropped
    assert connection.send(0, b"", "AU", urgptr=30).dropped
    assert connection.send(0, OK, "P").dropped
    assert connection.send(0, OK).passed


def test_a_head_does_not_end_with_the_stream(node: HttpNode) -> None:
    """Some servers take `GET /no` and a FIN for a complete request."""
    connection = Connection(node).open()
    assert connection.send(0, b"GET /n").passed
    assert out_of_order(node, connection.send(7, b"", "FA"))  # ahead: the server would keep it until the hole is filled
    assert connection.send(6, b"", "FA").reset
    assert b"403" in bytes(node.answers()[0][TCP].payload)
    for payload in (b"GET /n", OK[:-2], b"\r"):
        connection = Connection(node).open()
        assert connection.send(0, payload, "FPA").reset
    connection = Connection(node).open()
    cut = connection.send(0, OK + b"GET /ok HTTP/1.1", "FPA")
    assert (cut.passed, cut.payload, str(cut.packet[TCP].flags)) == (True, OK, "PA")
    # Behind a complete head, and in a body whose request was decided.
    body = b"POST /ok HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc"
    for payload in (OK, body, OK + OK):
        connection = Connection(node).open()
        assert connection.send(0, payload, "FPA").passed
        connection = Connection(node).open()
        assert connection.send(0, payload).passed
        assert connection.send(len(payload), b"", "FA").passed
    # Not in front of what passed already: the server may have lost it.
    connection = Connection(node).open()
    assert connection.send(0, OK[:6]).passed
    assert connection.send(6, OK[6:]).passed
    assert out_of_order(node, connection.send(6, b"", "FA"))
    assert connection.send(0, OK[:6], "FA").reset


def test_headers_that_lie(node: HttpNode) -> None:
    connection = Connection(node).open()
    assert connection.send(0, OK, dataofs=4).dropped
    assert connection.send(0, OK, dataofs=15).dropped
    layer = tcp(connection.port, 80, "PA", OK, seq=connection.seq(0), ack=connection.server_isn + 1)
    for fields in ({"ihl": 4}, {"len": 30}, {"len": 2000}, {"options": [b"\x01\x01\x01\x01"]}, {"flags": "MF"}):
        assert connection.raw(layer, **fields).dropped, fields
    # Ethernet padding is not payload.
    assert connection.send(0, b"GET /o").passed
    packet = connection.raw(tcp(connection.port, 80, "A", seq=connection.seq(6), ack=connection.server_isn + 1))
    assert packet.passed
    assert packet.packet[IP].len == 40


def test_ahead_in_a_head_waits(node: HttpNode) -> None:
    connection = Connection(node).open()
    assert out_of_order(node, connection.send(5, OK[5:]))
    assert connection.send(0, OK[:5]).passed
    assert connection.send(5, OK[5:]).passed


def test_holes_in_bodies_are_passed_over(node: HttpNode) -> None:
    connection = Connection(node).open()
    head = b"POST /ok HTTP/1.1\r\nContent-Length: 3000\r\n\r\n"
    start = len(head)
    assert connection.send(0, head + b"x" * 1000).passed
    assert connection.send(start + 2000, b"z" * 1000 + OK).passed
    assert connection.send(start + 1000, b"y" * 1000).passed
    assert connection.send(start + 1000, NO).passed  # opaque, whoever fills it
    end = start + 3000 + len(OK)
    assert connection.send(end, NO).reset
    # Not past its end.
    other = Connection(node).open()
    other.send(0, head)
    assert out_of_order(node, other.send(start + 3001, OK))
    assert out_of_order(node, other.send(start + 5000, OK))


def test_chunked_bodies_have_holes_too(node: HttpNode) -> None:
    connection = Connection(node).open()
    head = b"POST /ok HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n"
    start = len(head)
    assert connection.send(0, head).passed
    assert connection.send(start + 1000, b"x" * 1048 + b"\r\n0\r\n\r\n" + OK).passed
    assert connection.send(start, b"y" * 1000).passed
    assert connection.send(start + 2048 + 7 + len(OK), NO).reset


def test_holes_are_filled_when_the_next_chunks_have_begun(node: HttpNode) -> None:
    connection = Connection(node).open()
    chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
    head = b"POST /ok HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert connection.send(0, head).passed
    starts = [len(head) + i * len(chunk) for i in range(6)]
    for at in starts[:4]:
        assert connection.send(at, chunk[:20]).passed
        assert connection.send(at + 60, chunk[60:]).passed
    # A fifth hole has to wait; the others are filled in any order and in pieces.
    assert connection.send(starts[4], chunk[:20]).passed
    assert out_of_order(node, connection.send(starts[4] + 60, chunk[60:]))
    assert connection.send(starts[2] + 40, NO).passed
    assert out_of_order(node, connection.send(starts[2] + 50, NO))
    assert connection.send(starts[0] + 20, b"y" * 40).passed
    connection.acknowledge(starts[1])
    assert connection.send(starts[4] + 60, chunk[60:]).passed
    last = connection.send(starts[5], b"0\r\n\r\n" + NO)
    assert (last.passed, last.payload) == (True, b"0\r\n\r\n")


def test_repetitions_pass_when_acknowledged_or_the_same(node: HttpNode) -> None:
    connection = Connection(node).open()
    other = b"GET /ok/x HTTP/1.1\r\n\r\n"[: len(OK)]
    assert connection.send(0, OK).passed
    assert out_of_order(node, connection.send(0, NO))  # the decoy's other half
    assert connection.send(0, OK).passed
    assert out_of_order(node, connection.send(0, other))
    assert connection.send(0, OK).passed
    assert out_of_order(node, connection.send(0, OK[:10]))  # a part of it is not known to be the same
    connection.acknowledge(len(OK))
    assert connection.send(0, NO).passed  # the server has the other one
    assert connection.send(0, NO[:10]).passed
    # A repetition with something new behind it.
    assert connection.send(len(OK), OK).passed
    assert connection.send(len(OK), OK + OK).passed
    assert connection.send(len(OK), OK + OK + NO).payload == OK + OK
    assert out_of_order(node, connection.send(len(OK), OK + NO))


@FAMILIES
def test_allowed_in_front_of_denied(node: HttpNode, v6: bool) -> None:
    """The one is served, and the other one answered behind it, when its turn has come."""
    options = [("NOP", None), ("NOP", None), ("Timestamp", (77, 55))]
    connection, answer = Connection(node, v6).open(), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    body = b"POST /ok HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
    cut = connection.send(0, body + NO + OK, options=options)
    assert (cut.passed, cut.payload) == (True, body)
    assert checksums_hold(bytes(cut.packet))
    assert dict(option for option in cut.packet[TCP].options if option[1])["Timestamp"] == (77, 55)
    assert node.answers() == []
    node.http_events()
    # It comes again before the server has answered, and before the client has the answer.
    assert out_of_order(node, connection.send(len(body), NO + OK))
    connection.from_server("PA", answer, seq=connection.server_isn + 1, ack=connection.seq(len(body)))
    assert out_of_order(node, connection.send(len(body), NO + OK))
    deadline = time.monotonic() + 5
    while not (outcome := connection.send(len(body), NO + OK, ack=1 + len(answer))).reset:
        assert out_of_order(node, outcome)
        assert time.monotonic() < deadline
    (refusal,) = node.answers()
    assert refusal[TCP].seq == connection.server_isn + 1 + len(answer)
    assert [(bytes(e["method"]), int(e["status"])) for e in node.http_events()] == [(b"POST", 200), (b"GET", 403)]


def test_what_is_too_long_to_cut_goes_with_the_denied_one(node: HttpNode) -> None:
    connection = Connection(node).open()
    long = b"GET /ok HTTP/1.1\r\nX: " + b"y" * 400 + b"\r\n\r\n"
    assert connection.send(0, long + NO).reset


def test_repetitions_of_several_packets(node: HttpNode) -> None:
    connection = Connection(node).open()
    first, second = OK[:8], OK[8:]
    assert connection.send(0, first).passed
    assert connection.send(8, second).passed
    assert out_of_order(node, connection.send(0, b"GET /no "))
    assert connection.send(0, first).passed  # the end of the packet at the snapshot is known
    assert connection.send(8, second).passed  # and what follows begins there
    assert connection.send(len(OK), NO).reset


def test_overlaps_into_new_bytes_need_what_is_old_acknowledged(node: HttpNode) -> None:
    connection = Connection(node).open()
    assert connection.send(0, OK[:10]).passed
    assert out_of_order(node, connection.send(4, OK[4:]))
    connection.acknowledge(10)
    assert connection.send(4, b"....../no HTTP/1.1"[:6] + OK[10:]).passed
    assert connection.send(len(OK), NO).reset


def test_repetitions_that_nothing_explains_end_the_connection(node: HttpNode) -> None:
    connection = Connection(node).open()
    connection.send(0, OK)
    for _ in range(7):
        assert connection.send(1, OK[1:]).dropped
    assert node.answers() == []
    assert connection.send(1, OK[1:]).reset
    assert "R" in str(node.answers()[0][TCP].flags)
    # From its beginning, but not the same or only in part: the server has lost it, the client should try anew.
    other = Connection(node).open()
    other.send(0, OK)
    assert other.send(0, NO).dropped
    assert other.send(0, OK[:10]).reset


@FAMILIES
def test_sequence_numbers_come_round(node: HttpNode, v6: bool) -> None:
    connection = Connection(node, v6, isn=0xFFFFFFF0).open()
    offset = 0
    for _ in range(3):
        assert connection.send(offset, OK).passed
        offset += len(OK)
        connection.acknowledge(offset)
    assert connection.send(0, OK).passed
    assert connection.send(offset, NO).reset


def test_old_connections_are_refused_when_a_policy_comes(node: HttpNode) -> None:
    node.policy(l7=0)
    connection = Connection(node).open()
    assert connection.send(0, NO).passed
    node.policy()
    # The forbidden request is told so; the allowed one is reset, because nobody knows where a request begins.
    assert connection.send(len(NO), NO).reset
    assert b"403" in bytes(node.answers()[0][TCP].payload)
    node.policy(l7=0)
    other = Connection(node).open()
    node.policy()
    assert other.send(0, b"", "A").passed
    assert other.send(0, OK).reset
    assert "R" in str(node.answers()[0][TCP].flags)


def test_followed_connections_survive_a_policy_that_goes_and_comes(node: HttpNode) -> None:
    connection = Connection(node).open()
    assert connection.send(0, OK).passed
    node.http_events()
    node.policy(l7=0)
    assert connection.send(len(OK), NO + NO[:9]).passed
    assert len(node.http_events()) == 0
    node.policy()
    offset = len(OK + NO)
    assert connection.send(offset + 9, NO[9:]).passed  # began while everything was allowed
    offset += len(NO)
    assert connection.send(offset, OK).passed
    assert connection.send(offset + len(OK), NO).reset


def test_what_was_not_http_in_between_is_refused(node: HttpNode) -> None:
    connection = Connection(node).open()
    connection.send(0, OK)
    node.policy(l7=0)
    assert connection.send(len(OK), b"\x81\x05hello").passed
    assert connection.send(len(OK) + 7, b"\x81\x05hello").passed
    node.policy()
    assert connection.send(len(OK) + 14, OK).reset


def test_rules_change_between_requests_and_not_within(node: HttpNode) -> None:
    connection = Connection(node).open()
    try:
        assert connection.send(0, OK[:9]).passed
        node.rules(Rule("GET", "/no"))
        assert connection.send(9, OK[9:]).passed
        offset = len(OK)
        assert connection.send(offset, NO + NO[:9]).passed
        offset += len(NO) + 9
        # Two swaps later the table that the request began with is gone.
        node.rules(Rule("GET", "/no|/x"))
        node.rules(Rule("GET", "/no|/y"))
        assert connection.send(offset, NO[9:]).reset
    finally:
        node.rules(*RULES)


def test_without_tables_everything_is_refused(object_cache: Path) -> None:
    http = HttpNode(object_cache)
    try:
        connection = Connection(http).open()
        assert connection.send(0, OK).reset
    finally:
        http.close()


def test_forgotten_connections_fail_closed(object_cache: Path) -> None:
    """An evicted entry is a connection of which nothing is known."""
    http = HttpNode(object_cache)
    try:
        http.rules(*RULES)
        connection = Connection(http).open()
        assert connection.send(0, OK).passed
        conns = http.map("http_conns")
        conns.delete_batch([key for key, _ in conns.items()])
        assert connection.send(len(OK), OK).reset
    finally:
        http.close()


# The adversary.

PIECES = [
    OK,
    NO,
    b"GET /ok/xx HTTP/1.1\r\n\r\n",
    b"POST /ok HTTP/1.1\r\nContent-Length: 40\r\n\r\n" + NO + NO,
    b"POST /ok HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd",
    b"POST /ok HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n" + NO + b"\r\n0\r\n\r\n",
    b"GET /ok HTTP/1.1\r\nX-Padding: " + NO[:-4] + b"\r\n\r\n",
]


class Server:
    """A socket: in order it takes what comes; out of order, either of two copies may win."""

    def __init__(self) -> None:
        self.stream = b""
        self.waiting: dict[int, int] = {}

    def receive(self, offset: int, payload: bytes, newer_wins: bool) -> None:
        for i, byte in enumerate(payload):
            if offset + i >= len(self.stream) and (newer_wins or offset + i not in self.waiting):
                self.waiting[offset + i] = byte
        while len(self.stream) in self.waiting:
            self.stream += bytes((self.waiting.pop(len(self.stream)),))


CONTENT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=2).map(b"".join)
STEP = st.one_of(
    st.tuples(st.just("send"), CONTENT, st.sampled_from([0, 0, 0, 0, 0, 1, 5, 20, 41])),
    st.tuples(st.just("part"), CONTENT, st.integers(1, 40)),
    st.tuples(st.just("again"), CONTENT, st.integers(0, 3)),
    st.tuples(st.just("instead"), CONTENT, st.integers(0, 3)),
    st.tuples(st.just("disguised"), CONTENT, st.integers(0, 3)),
    st.tuples(st.just("disguised and more"), CONTENT, st.integers(0, 3)),
    st.tuples(st.just("overlap"), CONTENT, st.sampled_from([1, 5, 9, 20, 22, 40])),
    st.tuples(st.just("acknowledge"), st.just(b""), st.just(0)),
)
FATE = st.tuples(st.booleans(), st.booleans())


def segment(kind: str, content: bytes, number: int, sent: list[tuple[int, bytes]], top: int) -> tuple[int, bytes]:
    """(offset, payload) of a step, given what went before."""
    match kind:
        case "send":
            return top + number, content
        case "part":
            return top, content[:number]
        case "again" if sent:
            return sent[-1 - number % len(sent)]
        case "instead" if sent:
            return sent[-1 - number % len(sent)][0], content
        case "disguised" if sent:
            offset, payload = sent[-1 - number % len(sent)]
            return offset, payload.replace(b"k", b"x")
        case "disguised and more" if sent:
            offset, payload = sent[-1]
            return offset, payload.replace(b"k", b"x") + content
        case "overlap":
            return max(0, top - number), content
    return top, content


@given(st.lists(st.tuples(STEP, FATE), min_size=2, max_size=10))
@settings(
    max_examples=800, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_adversary(node: HttpNode, steps: list[tuple[tuple[str, bytes, int], tuple[bool, bool]]]) -> None:
    connection, server = Connection(node).open(), Server()
    sent: list[tuple[int, bytes]] = []
    top = 0
    for (kind, content, number), (lost, newer_wins) in steps:
        if kind == "acknowledge":
            connection.acknowledge(len(server.stream))
            continue
        offset, payload = segment(kind, content, number, sent, top)
        outcome = connection.send(offset, payload)
        if outcome.reset:
            break
        if not outcome.passed:
            continue
        assert payload.startswith(outcome.payload)
        payload = outcome.payload  # what is refused behind something allowed is cut off
        sent.append((offset, payload))
        top = max(top, offset + len(payload))
        if not lost:
            server.receive(offset, payload, newer_wins)
        assert judge(server.stream, ALLOW).refused is None, server.stream
