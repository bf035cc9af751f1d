"""Forbidden names over TCP: the pod gets an answer where it reads its next message, the server a reset, and no name."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.all import TCP

from services.agent.abi.conntrack import CtFlags
from services.agent.abi.events import EventType
from services.model.verdict import DropReason
from tests.datapath import dns_model as model
from tests.datapath.dns_node import RULESET, Asker, Names, answer, question, record
from tests.datapath.dns_stream import (
    SERVER_START,
    START,
    Conversation,
    Sniffer,
    Stream,
    framed,
    is_reset,
    messages,
    passes,
)
from tests.datapath.node import TC_ACT_SHOT, Node, sh
from tests.datapath.packets import parse

pytestmark = pytest.mark.root
PATTERNS = ("*.example.com",)
HELD_AT = 32
"""Where `struct tls_conn` says since when a refusal waits."""
GOOD, BAD = question("a.example.com", number=1), question("evil.test", number=2)


@pytest.fixture
def names(node: Node) -> Iterator[Names]:
    found = Names(node)
    for each in ("tls_conns", "dns_streams"):
        node.map(each).delete_batch([key for key, _ in node.map(each).items()])
    found.write({RULESET: PATTERNS}, ("api.example.com",))
    found.events()
    for link in ("host0", "pod0"):
        sh("ip", "link", "set", link, "up", netns=node.name)
    yield found
    found.close()


@pytest.fixture
def sniffer(node: Node, names: Names) -> Iterator[Sniffer]:
    with Sniffer(node) as found:
        yield found


def refusal(raw: bytes) -> bytes:
    message = model.read(raw)
    assert message is not None
    return framed(model.refusal(raw, message))


def the_answer(sniffer: Sniffer) -> Any:
    (packet,) = sniffer.told()
    return packet


def told(names: Names) -> list[tuple[bytes, int]]:
    return [(bytes(e["name"]), int(e["drop_reason"])) for e in names.events() if e["type"] == EventType.DNS_QUERY]


@pytest.mark.parametrize("server", ["192.0.2.53", "2001:db8::53"])
@pytest.mark.parametrize("edns", [False, True])
@pytest.mark.parametrize("stamps", [None, (7, 9)])
def test_a_forbidden_name_is_answered(
    node: Node, names: Names, sniffer: Sniffer, server: str, edns: bool, stamps: tuple[int, int] | None
) -> None:
    stream = Stream(node, Asker(node, names, server=server))
    asked = question("Evil.Test", 28, 4711, edns=edns)
    options = [("NOP", None), ("NOP", None), ("Timestamp", stamps)] if stamps else []
    assert is_reset(stream.send(framed(asked), options=options), 0)
    seen = the_answer(sniffer)
    assert (seen.payload.src, seen.payload.dst) == (server, source(stream, server))
    segment = seen[TCP]
    assert (segment.sport, str(segment.flags)) == (53, "FPA")
    assert (segment.seq, segment.ack) == (SERVER_START, (START + len(framed(asked))) & 0xFFFFFFFF)
    assert bytes(segment.payload) == refusal(asked)
    assert [value for name, value in segment.options if name == "Timestamp"] == ([stamps[::-1]] if stamps else [])
    assert told(names) == [(b"evil.test.", DropReason.DNS_DENIED)]
    (entry,) = [e for e in node.conntrack().values() if e.flags & CtFlags.FIN_REPLY]
    assert entry.endpoint_id == 1


def source(stream: Stream, server: str) -> str:
    return stream.asker.pod.ipv6 if ":" in server else stream.asker.pod.ipv4


def test_what_comes_after_the_answer(node: Node, names: Names, sniffer: Sniffer) -> None:
    stream, bad = Stream(node, Asker(node, names)), framed(BAD)
    assert is_reset(stream.send(bad), 0)
    first = the_answer(sniffer)[TCP]
    # The answer was lost: it is the same again, and the server is not bothered.
    assert stream.send(bad).verdict == TC_ACT_SHOT
    again = the_answer(sniffer)[TCP]
    assert (again.seq, again.ack, again.flags, bytes(again.payload)) == (
        first.seq,
        first.ack,
        first.flags,
        bytes(first.payload),
    )
    # What the server still has to say stays away, whatever it is.
    for flags in ("PA", "A", "FA", "RA"):
        assert stream.hear(b"late" if flags == "PA" else b"", 0, flags).verdict == TC_ACT_SHOT
    # More questions, the acknowledgement and the end.
    heard = len(refusal(BAD)) + 1
    assert stream.send(framed(GOOD), len(bad), heard=heard).verdict == TC_ACT_SHOT
    taken = the_answer(sniffer)[TCP]
    assert (str(taken.flags), taken.seq) == ("A", SERVER_START + heard)
    assert taken.ack == (START + len(bad) + len(framed(GOOD))) & 0xFFFFFFFF
    assert stream.send(b"", len(bad) + len(framed(GOOD)), "A", heard).verdict == TC_ACT_SHOT
    assert not sniffer.told()
    assert stream.send(b"", len(bad) + len(framed(GOOD)), "FA", heard).verdict == TC_ACT_SHOT
    assert the_answer(sniffer)[TCP].ack == taken.ack + 1
    # The same ports serve a new connection.
    assert passes(stream.send(b"", 999, "S"), b"")
    assert passes(stream.hear(b"", 999, "SA", acked=1000), b"")
    assert passes(stream.send(framed(GOOD), 1000, heard=1000), framed(GOOD))


def test_a_server_that_lost_a_segment_is_reset_where_it_is(node: Node, names: Names, sniffer: Sniffer) -> None:
    stream, bad = Stream(node, Asker(node, names)), framed(BAD)
    assert passes(stream.send(bad[:9]), bad[:9])
    assert is_reset(stream.send(bad[9:], 9), 9)
    assert stream.hear(b"", 0, "A", acked=0).verdict == TC_ACT_SHOT  # it has nothing, and says so
    assert is_reset(stream.send(b"", len(bad), "A", len(refusal(BAD)) + 1), 0)
    assert stream.send(b"", len(bad), "A", len(refusal(BAD)) + 1).verdict == TC_ACT_SHOT


def test_questions_before_a_forbidden_one_get_their_answers(node: Node, names: Names, sniffer: Sniffer) -> None:
    stream, good, bad = Stream(node, Asker(node, names)), framed(GOOD), framed(BAD)
    result = stream.send(good + bad)
    assert bytes(parse(result.packet)[TCP].payload) == good
    # Nothing is refused while the server has not answered, nor in the middle of its answer.
    assert stream.send(bad, len(good)).verdict == TC_ACT_SHOT
    reply = framed(answer(GOOD, [record("203.0.113.1")]))
    assert passes(stream.hear(reply[:10], acked=len(good)), reply[:10])
    assert stream.send(bad, len(good), heard=10).verdict == TC_ACT_SHOT
    assert passes(stream.hear(reply[10:], 10, acked=len(good)), reply[10:])
    assert stream.send(bad, len(good), heard=10).verdict == TC_ACT_SHOT  # it crossed the answer
    assert not sniffer.told()
    assert is_reset(stream.send(bad, len(good), heard=len(reply)), len(good))
    seen = the_answer(sniffer)[TCP]
    assert (seen.seq, bytes(seen.payload)) == (SERVER_START + len(reply), refusal(BAD))
    assert told(names) == [(b"a.example.com.", 0), (b"evil.test.", DropReason.DNS_DENIED)]


@pytest.mark.parametrize("said", [0, 10])
def test_a_server_that_does_not_answer_is_not_waited_for(node: Node, names: Names, sniffer: Sniffer, said: int) -> None:
    stream, good, bad = Stream(node, Asker(node, names)), framed(GOOD), framed(BAD)
    assert passes(stream.send(good), good)
    reply = framed(answer(GOOD, [record("203.0.113.1")]))
    stream.hear(reply[:said], acked=len(good))
    assert stream.send(bad, len(good), heard=said).verdict == TC_ACT_SHOT
    for key, raw in node.map("tls_conns").items():
        entry = bytearray(raw)
        struct.pack_into("<Q", entry, HELD_AT, time.monotonic_ns() - 3 * 10**9)
        node.map("tls_conns").update(key, bytes(entry))
    result = stream.send(bad, len(good), heard=said)
    assert is_reset(result, len(good))
    seen = the_answer(sniffer)[TCP]
    assert str(seen.flags) == ("RA" if said else "FPA")
    assert bytes(seen.payload) == (b"" if said else refusal(BAD))
    assert told(names)[-1] == (b"evil.test.", DropReason.DNS_DENIED)


def test_several_forbidden_questions_of_a_segment_are_answered_together(
    node: Node, names: Names, sniffer: Sniffer
) -> None:
    asked = [question("evil.test", kind, number) for number, kind in enumerate((1, 28))]
    longest = [question(".".join(["x" * 60] * 4), number=number) for number in range(3)]
    for raw, expected in (
        (asked, asked),
        ([*asked, GOOD, BAD], asked),
        ([*asked, b"no question"], asked),
        (longest, longest[:1]),
        ([question("evil.test", number=n) for n in range(30)], None),
    ):
        stream = Stream(node, Asker(node, names))
        whole = b"".join(map(framed, raw))
        assert is_reset(stream.send(whole), 0)
        seen = the_answer(sniffer)[TCP]
        assert seen.ack == (START + len(whole)) & 0xFFFFFFFF
        if expected is not None:
            assert bytes(seen.payload) == b"".join(map(refusal, expected))
        else:
            assert bytes(seen.payload).startswith(refusal(raw[0]) + refusal(raw[1]))


def test_what_cannot_be_answered_is_reset_and_told(node: Node, names: Names, sniffer: Sniffer) -> None:
    stream = Stream(node, Asker(node, names))
    assert is_reset(stream.send(framed(BAD[:-3])), 0)
    assert str(the_answer(sniffer)[TCP].flags) == "RA"
    reasons = [int(e["drop_reason"]) for e in node.events() if e["type"] == EventType.DROP]
    assert reasons == [DropReason.DNS_MALFORMED]
    # Too much before it for a packet of the kernel's own, and an answer has begun.
    stream = Stream(node, Asker(node, names))
    many = b"".join(framed(question("a.example.com", number=n)) for n in range(15))
    stream.send(many[:30])
    stream.hear(b"\0", acked=30)
    assert is_reset(stream.send(many[30:] + framed(BAD), 30, heard=1), 30)
    assert str(the_answer(sniffer)[TCP].flags) == "RA"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(
        st.sampled_from(["a.example.com", "bb.example.com", "evil.test", "x.evil.test"]), min_size=1, max_size=6
    ),
    seed=st.integers(0, 2**32),
)
def test_every_conversation_ends_as_the_model_says(
    node: Node, names: Names, sniffer: Sniffer, asked: list[str], seed: int
) -> None:
    raw = [question(name, number=number, edns=bool(number % 2)) for number, name in enumerate(asked)]
    passed, refused = model.conversation(raw, PATTERNS)
    sniffer.told()
    talk = Conversation(Stream(node, Asker(node, names)), sniffer, b"".join(map(framed, raw)), random.Random(seed))
    talk.run()
    assert messages(bytes(talk.server_has)) == passed
    heard = messages(bytes(talk.pod_has))
    assert [struct.unpack_from(">H", each)[0] for each in heard[: len(passed)]] == list(range(len(passed)))
    assert talk.ended == bool(refused)
    assert not talk.reset
    if refused:
        more = heard[len(passed) :]
        assert more
        assert more == refused[: len(more)]
        talk.close()
        assert talk.server_reset is not None
