"""Heads that come again are compared instead of read: to the last byte, by the same rules, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.agent.abi.http import HttpMemo
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
def node(module_http: HttpNode) -> HttpNode:
    module_http.reset()
    module_http.rules(*RULES)
    forget(module_http)
    return module_http


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
