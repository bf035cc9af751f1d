"""Heads that come again are compared instead of read: to the last byte, by the same rules, and nothing else changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.agent.abi.http import HttpMemo
from services.agent.datapath.http_tables import HttpTableWriter
from services.model.verdict import DropReason
from tests.datapath.http_model import Rule, allow_by, judge
from tests.datapath.http_node import RULESET, Connection, HttpNode, serving

pytestmark = pytest.mark.root

RULES = (Rule("GET", "/ok.?"), Rule("GET", "/hosted", "a[.]example"))
ALLOW = allow_by(*RULES)
OK = b"GET /ok HTTP/1.1\r\nHost: web\r\n\r\n"
HOSTED = b"GET /hosted HTTP/1.1\r\nHost: a.example\r\n\r\n"
OTHER = HOSTED.replace(b"a.example", b"b.example")


@pytest.fixture(scope="module")
def module_http(object_cache: Path) -> Iterator[HttpNode]:
    with serving(object_cache, *RULES) as http:
        yield http


@pytest.fixture
def node(module_http: HttpNode) -> Iterator[HttpNode]:
    """Each processor remembers for itself: the test stays on one."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        module_http.reset()
        module_http.rules(*RULES)
        forget(module_http)
        yield module_http
    finally:
        os.sched_setaffinity(0, processors)


def cells(value: bytes) -> list[HttpMemo]:
    """A place, as each CPU has it."""
    size = len(HttpMemo().pack())
    return [HttpMemo.unpack(value[at : at + size]) for at in range(0, len(value), size)]


def remembered(node: HttpNode) -> list[HttpMemo]:
    return [cell for _, value in node.map("http_memos").items() for cell in cells(value) if cell.length]


def forget(node: HttpNode) -> None:
    for key, value in list(node.map("http_memos").items()):
        node.map("http_memos").update(key, bytes(len(value)))


class Talk:
    """Requests and answers in turn."""

    def __init__(self, node: HttpNode) -> None:
        self.node, self.connection, self.sent, self.heard = node, Connection(node).open(), 0, 0

    def ask(self, head: bytes) -> bool:
        """Whether it passed; then it is answered."""
        outcome = self.connection.send(self.sent, head, ack=1 + self.heard)
        if not outcome.passed:
            return False
        self.sent += len(head)
        answer = b"HTTP/1.1 200 Fine\r\n\r\n"
        self.connection.from_server(
            "PA", answer, seq=self.connection.server_isn + 1 + self.heard, ack=self.connection.seq(self.sent)
        )
        self.heard += len(answer)
        return True


def learn(node: HttpNode, head: bytes) -> None:
    talk = Talk(node)
    assert all(talk.ask(head) for _ in range(2))
    assert len(remembered(node)) == 1
    node.http_events()


@pytest.mark.parametrize("head", [OK, HOSTED])
def test_what_comes_twice_is_remembered_and_told_alike(node: HttpNode, head: bytes) -> None:
    talk = Talk(node)
    assert all(talk.ask(head) for _ in range(5))
    (memo,) = remembered(node)
    assert memo.length == len(head)
    first, *others = (
        (bytes(e["method"]), bytes(e["path"]), e["status"], e["rule_id"], e["http_version"], e["path_len"])
        for e in node.http_events()
    )
    assert first[:2] == (b"GET", head.split()[1])
    assert others == [first] * 4
    assert Talk(node).ask(head)
    assert not Talk(node).ask(OTHER)


@pytest.mark.parametrize("head", [OK, HOSTED])
def test_every_byte_counts(node: HttpNode, head: bytes) -> None:
    learn(node, head)
    for at in range(len(head)):
        for byte in (head[at] ^ 1, head[at] ^ 0x20, head[at] ^ 0x80, 0, 0x0A):
            bent = head[:at] + bytes((byte,)) + head[at + 1 :]
            connection = Connection(node).open()
            passed = connection.send(0, bent).passed
            assert passed == (judge(bent, ALLOW).refused is None), bent


@pytest.mark.parametrize("cut", range(1, len(OK), 5))
def test_parts_are_no_heads(node: HttpNode, cut: int) -> None:
    learn(node, OK)
    connection = Connection(node).open()
    assert connection.send(0, OK[:cut]).passed
    assert connection.send(cut, OK[cut:]).passed
    assert connection.send(len(OK), OTHER).reset


def test_inside_a_body_it_is_no_head(node: HttpNode) -> None:
    node.rules(*RULES, Rule("POST", "/ok"))
    learn(node, OK)
    talk = Talk(node)
    assert talk.ask(b"POST /ok HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (len(OK) + 3))
    assert talk.connection.send(talk.sent, OK).passed
    talk.sent += len(OK)
    assert len(remembered(node)) == 1
    assert 3 in [s.flow.now.remain for s in node.states() if s.flow.now.seq == talk.connection.seq(talk.sent)]


def test_other_rules_are_asked_anew(node: HttpNode) -> None:
    learn(node, OK)
    node.rules(Rule("GET", "/other"))
    assert not Talk(node).ask(OK)
    assert node.http_events()[-1]["drop_reason"] == DropReason.HTTP_DENIED
    node.rules(*RULES)
    assert Talk(node).ask(OK)
    # Another rule set of the same generation.
    learnt = RULESET + 1
    node.compile({RULESET: RULES, learnt: (Rule("GET", "/other"),)})
    assert all(Talk(node).ask(OK) for _ in range(3))
    node.policy(l7=learnt)
    assert not Talk(node).ask(OK)


def test_repetitions_are_still_compared(node: HttpNode) -> None:
    learn(node, OK)
    connection = Connection(node).open()
    assert connection.send(0, OK).passed
    assert connection.send(0, OK).passed
    # The server may have lost the first: what comes in its place has to be the same.
    assert not connection.send(0, OK.replace(b"/ok", b"/no")).passed
    assert connection.send(0, OK).passed
    assert not connection.send(0, OK.replace(b"/ok", b"/o1")).passed


def test_a_place_that_lies_is_not_believed(node: HttpNode) -> None:
    """Equal tags are not equal heads: here another head has the tag and the length of the one that is remembered."""
    learn(node, OK)
    ((key, value),) = [(k, v) for k, v in node.map("http_memos").items() if any(c.length for c in cells(v))]
    bent = []
    for cell in cells(value):
        if cell.length:
            cell.head[5] ^= 1
        bent.append(cell.pack())
    node.map("http_memos").update(key, b"".join(bent))
    talk = Talk(node)
    assert talk.ask(OK)
    (event,) = node.http_events()
    assert bytes(event["path"]) == b"/ok"


def traced(number: int, path: str = "/ok", host: str = "web") -> bytes:
    """A head whose trace has a number of its own."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nTraceparent: 00-{number:032x}-{number + 1:016x}-01\r\nA: b\r\n\r\n"
    ).encode()


def mark(node: HttpNode, path: bytes) -> None:
    """What is remembered says from now on that it is another path."""
    for key, value in list(node.map("http_memos").items()):
        marked = cells(value)
        for cell in marked:
            if cell.length:
                cell.path[: len(path)] = path
        node.map("http_memos").update(key, b"".join(cell.pack() for cell in marked))


def told(node: HttpNode) -> list[tuple[bytes, object]]:
    return [(bytes(e["path"]), node.trace(e)) for e in node.http_events()]


def ids(number: int) -> tuple[str, str, int]:
    return f"{number:032x}", f"{number + 1:016x}", 1


def test_heads_that_differ_in_their_trace_are_one(node: HttpNode) -> None:
    talk = Talk(node)
    assert all(talk.ask(traced(number)) for number in (7, 8, 1 << 60, 9))
    (memo,) = remembered(node)
    at = traced(7).index(b"00-000")
    assert memo.traced_at == at
    assert bytes(memo.head)[: memo.length] == traced(7)[:at] + bytes(55) + traced(7)[at + 55 :]
    assert told(node) == [(b"/ok", ids(number)) for number in (7, 8, 1 << 60, 9)]
    mark(node, b"/me")
    assert talk.ask(traced(0xFEED))
    assert told(node) == [(b"/me", ids(0xFEED))]
    # Another head of that length, without a trace, in turn with it.
    plain = traced(7).replace(b"Traceparent: 00", b"Tracebarent: xx")
    for number in range(3):
        assert talk.ask(plain)
        assert talk.ask(traced(number + 1))
    assert told(node) == [(path, known) for n in range(3) for path, known in ((b"/ok", None), (b"/me", ids(n + 1)))]
    assert len(remembered(node)) == 2


def test_what_is_no_trace_is_read(node: HttpNode) -> None:
    """Only what is well-formed is passed over, whatever stands in its place."""
    talk, head = Talk(node), traced(0xABC)
    assert all(talk.ask(head) for _ in range(4))
    told(node)
    mark(node, b"/me")
    start = head.index(b"00-000")
    for at in range(start - 14, start + 57):
        for byte in (head[at] ^ 1, 0, 0x0D, ord("F"), ord("-")):
            bent = head[:at] + bytes((byte,)) + head[at + 1 :]
            if bent == head:
                continue
            connection = Connection(node).open()
            judged = judge(bent, ALLOW)
            assert connection.send(0, bent).passed == (judged.refused is None), bent
            connection.from_server("RA", seq=connection.server_isn + 1, ack=connection.seq(len(bent)))
            (event,) = told(node)
            if judged.refused is None:
                assert event[1] == judged.requests[0].trace, bent


def test_where_rules_look_at_fields_a_trace_is_one_of_them(node: HttpNode) -> None:
    talk = Talk(node)
    assert all(talk.ask(traced(number, "/hosted", "a.example")) for number in range(1, 6))
    assert remembered(node) == []
    assert told(node) == [(b"/hosted", ids(number)) for number in range(1, 6)]


def test_traces_can_be_left_alone(node: HttpNode) -> None:
    assert all(Talk(node).ask(traced(number)) for number in (1, 2, 3, 4))
    maps = {name: node.map(name) for name in ("http_grammar", "http_tables", "http_config")}
    tables = node.rules(*RULES)
    HttpTableWriter(maps, traces=False).write(tables)
    told(node)
    assert all(Talk(node).ask(traced(number)) for number in (5, 5, 5, 6))
    assert {known for _, known in told(node)} == {None}
