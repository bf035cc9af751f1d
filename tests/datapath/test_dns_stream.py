"""DNS over TCP: the same rules, message by message, however the stream is cut."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.datapath.dns_model import AXFR, IXFR
from tests.datapath.dns_node import RULESET, Asker, Names, alias, answer, question, record
from tests.datapath.dns_stream import Stream, framed, is_reset, passes
from tests.datapath.node import TC_ACT_OK, TC_ACT_SHOT, Node, sh

pytestmark = pytest.mark.root
SELECTORS = ("api.example.com",)


@pytest.fixture
def names(node: Node) -> Iterator[Names]:
    found = Names(node)
    for each in ("tls_conns", "dns_streams"):
        node.map(each).delete_batch([key for key, _ in node.map(each).items()])
    found.write({RULESET: ["*.example.com"]}, SELECTORS)
    found.events()
    sh("ip", "link", "set", "host0", "up", netns=node.name)
    yield found
    found.close()


def test_an_answer_by_tcp_opens_its_addresses(node: Node, names: Names) -> None:
    asker = Asker(node, names)
    asker.allow({"api.example.com"})
    stream = Stream(node, asker)
    asked = question("api.example.com")
    assert passes(stream.send(framed(asked)), framed(asked))
    size = len(framed(asked))
    reply = framed(answer(asked, [record(f"203.0.113.{i}", 60) for i in range(1, 41)]))
    assert asker.connect("203.0.113.7", sport=1) == TC_ACT_SHOT
    assert passes(stream.hear(reply, acked=size), reply)
    assert asker.connect("203.0.113.7", sport=2) == TC_ACT_OK
    assert asker.connect("203.0.113.40", sport=3) == TC_ACT_OK
    # The next question on the same connection, asked twice: the second time it is a repetition.
    more = framed(question("www.example.com", number=5))
    assert passes(stream.send(more, size), more)
    assert passes(stream.send(more, size), more)


def test_what_is_no_question_ends_the_connection(node: Node, names: Names) -> None:
    for raw in (b"\0\x05hello", b"GET / HTTP/1.1\r\n\r\n", framed(question("a.example.com")[:-6])):
        assert is_reset(Stream(node, Asker(node, names)).send(raw), 0), raw


def test_repetitions_say_the_same_and_holes_are_dropped(node: Node, names: Names) -> None:
    stream = Stream(node, Asker(node, names))
    one = framed(question("a.example.com"))
    assert stream.send(one, 10).verdict == TC_ACT_SHOT
    assert passes(stream.send(one[:20]), one[:20])
    other = framed(question("b.example.com"))
    assert is_reset(stream.send(other), 20)


def test_answers_that_nobody_asked_for_teach_nothing(node: Node, names: Names) -> None:
    asker = Asker(node, names)
    stream = Stream(node, asker)
    asked = question("api.example.com")
    reply = framed(answer(asked, [record("203.0.113.9")]))
    assert stream.hear(reply).verdict == TC_ACT_SHOT
    stream.send(framed(asked))
    assert stream.hear(framed(answer(asked, [record("203.0.113.9")], number=9))).verdict == TC_ACT_SHOT
    assert stream.hear(reply, 1).verdict == TC_ACT_SHOT  # a byte is missing
    assert not list(node.map("fqdn_ips").items())
    assert passes(stream.hear(reply), reply)
    assert list(node.map("fqdn_ips").items())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 64), min_size=1, max_size=3),
    awaited=st.booleans(),
    cuts=st.lists(st.integers(1, 1500) | st.integers(1, 40), max_size=8),
    again=st.booleans(),
)
def test_an_answer_in_pieces_opens_its_addresses_before_its_last_piece(
    node: Node, names: Names, sizes: list[int], awaited: bool, cuts: list[int], again: bool
) -> None:
    node.map("fqdn_ips").delete_batch([key for key, _ in node.map("fqdn_ips").items()])
    stream, name = Stream(node, Asker(node, names)), "api.example.com" if awaited else "www.example.com"
    replies = []
    for number, size in enumerate(sizes):
        asked = question(name, number=number)
        assert stream.send(framed(asked), sum(len(framed(question(name))) for _ in range(number))).verdict == TC_ACT_OK
        replies.append(framed(answer(asked, [record(f"203.0.{113 + number}.{i}") for i in range(size)])))
    whole = b"".join(replies)
    ends = list(itertools.accumulate(map(len, replies)))
    places = [0, *sorted({cut for cut in cuts if cut < len(whole)}), len(whole)]
    for at, end in itertools.pairwise(places):
        assert passes(stream.hear(whole[at:end], at), whole[at:end])
        if again:
            assert passes(stream.hear(whole[at:end], at), whole[at:end])  # a repetition
        known = set(names.addresses().get(f"{name}.", ()))
        complete = [number for number, bound in enumerate(ends) if bound <= end]
        there = {f"203.0.{113 + number}.{i}" for number in complete for i in range(sizes[number])}
        assert there <= known if awaited else True, "the pod has the answer, and an address is not open"


def test_an_answer_in_pieces_that_cannot_be_kept_is_not_passed(node: Node, names: Names) -> None:
    stream, asked = Stream(node, Asker(node, names)), question("api.example.com")
    stream.send(framed(asked))
    reply = framed(answer(asked, [record("203.0.113.9")] + [alias(f"{'x' * 60}.{'y' * 60}.test")] * 40))
    assert len(reply) > 4096
    assert passes(stream.hear(reply[:100]), reply[:100])
    assert stream.hear(reply[100:1000], 100).verdict == TC_ACT_SHOT
    # Another one that was not asked for, and one whose connection's bytes were forgotten.
    for forget in (False, True):
        stream = Stream(node, Asker(node, names))
        stream.send(framed(asked))
        reply = framed(answer(asked, [record("203.0.113.9")] * 30, number=77 if forget else 78))
        assert passes(stream.hear(reply[:100]), reply[:100])
        if forget:
            node.map("dns_kept").delete_batch([key for key, _ in node.map("dns_kept").items()])
        assert stream.hear(reply[100:], 100).verdict == TC_ACT_SHOT
    assert not list(node.map("fqdn_ips").items())


def test_a_long_answer_in_pieces_passes_unread_if_nobody_waits_for_it(node: Node, names: Names) -> None:
    asker = Asker(node, names)
    stream = Stream(node, asker)
    asked = question("www.example.com")
    stream.send(framed(asked))
    reply = framed(answer(asked, [alias("x" * 60 + ".test")] * 100)) + framed(answer(asked, [record("203.0.113.99")]))
    for at, end in itertools.pairwise((0, 100, 500, *range(1400, len(reply), 1400), len(reply))):
        assert passes(stream.hear(reply[at:end], at), reply[at:end])


def test_a_zone_transfer_passes_and_teaches_nothing(node: Node, names: Names) -> None:
    """Its messages behind the first need not repeat the question (RFC 5936, 2.2.1)."""
    stream = Stream(node, Asker(node, names))
    asked = question("api.example.com", AXFR, number=3)
    assert passes(stream.send(framed(asked)), framed(asked))
    first = framed(answer(asked, [record("203.0.113.9")] * 9))
    more = struct.pack(">6H", 3, 0x8400, 0, 200, 0, 0) + record("203.0.113.9") * 200
    whole = first + framed(more) * 2
    for at, end in itertools.pairwise((0, 100, *range(1500, len(whole), 1400), len(whole))):
        assert passes(stream.hear(whole[at:end], at), whole[at:end])
    assert not list(node.map("fqdn_ips").items())
    other = Stream(node, Asker(node, names))
    assert passes(
        other.send(framed(question("api.example.com", 1, number=3))), framed(question("api.example.com", number=3))
    )
    assert other.hear(framed(more)).verdict == TC_ACT_SHOT
    # An incremental one says what it has; nothing else stands behind a question.
    soa = b"\xc0\x0c" + struct.pack(">HHIH", 6, 1, 0, 22) + b"\0\0" + bytes(20)
    for kind, fine in ((IXFR, True), (AXFR, False)):
        asked = question("api.example.com", kind)
        asked = asked[:8] + b"\0\1" + asked[10:] + soa
        stream = Stream(node, Asker(node, names))
        assert passes(stream.send(framed(asked)), framed(asked)) == fine
