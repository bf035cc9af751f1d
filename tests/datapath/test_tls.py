"""Server names of TLS clients: real ClientHellos, cut and bent, against a readable model; then whole connections."""

from __future__ import annotations

import itertools
import ssl
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.all import TCP

from services.agent.abi.events import EventType
from services.agent.abi.names import L7Kind
from services.agent.calc.names import matches
from services.model.verdict import Direction, DropReason
from tests.datapath import tls_model as model
from tests.datapath.dns_node import Names
from tests.datapath.node import TC_ACT_OK, TC_ACT_SHOT, Node, Pod, sh
from tests.datapath.packets import checksums_hold, from_pod, parse, tcp, to_pod

pytestmark = pytest.mark.root
RULESET = 9
PATTERNS = ("api.example.com", "*.one.test", "**.deep.test")
SITE = "203.0.113.44"
_ports = itertools.count(20000)
START = 0xFFFFFF00  # so that sequence numbers wrap


def hello(name: str | None) -> bytes:
    """What this Python's TLS sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


ALLOWED, FORBIDDEN, NAMELESS = hello("api.example.com"), hello("evil.example.com"), hello(None)


@pytest.fixture
def names(node: Node) -> Iterator[Names]:
    found = Names(node)
    for each in ("tls_conns", "tls_servers"):
        node.map(each).delete_batch([key for key, _ in node.map(each).items()])
    found.write({RULESET: PATTERNS})
    found.events()
    yield found
    found.close()


CLIENT_POD, SERVER_POD = 1, 2
DIRECTIONS = {CLIENT_POD: Direction.EGRESS, SERVER_POD: Direction.INGRESS}


@pytest.fixture(params=[CLIENT_POD, SERVER_POD], ids=["egress", "ingress"])
def pod(node: Node, names: Names, request: pytest.FixtureRequest) -> Pod:
    """The pod whose rules ask for names: the client, or the server."""
    sh("ip", "link", "set", "host0", "up", netns=node.name)
    found = node.pod(request.param, 1000 + request.param)
    node.rule(found, DIRECTIONS[request.param], 0, 6, 443, l7=L7Kind.TLS.ruleset(RULESET), rule_id=3)
    del names
    return found


class Connection:
    """A client's connection, opened."""

    def __init__(self, node: Node, pod: Pod, site: str = SITE) -> None:
        self.node, self.pod, self.site, self.port = node, pod, site, next(_ports)
        assert self._send(tcp(self.port, 443, "S", seq=START - 1)).verdict == TC_ACT_OK
        self.acknowledge(0, "SA")

    def _run(self, l4: TCP, *, leaves: bool) -> Any:
        """A packet through the pod's hook, in one direction or the other."""
        if leaves:
            return self.node.run("from_endpoint", from_pod(self.pod, self.site, l4), self.pod.ifindex)
        return self.node.run("to_endpoint", to_pod(self.pod, self.site, l4), self.pod.ifindex)

    def _send(self, l4: TCP) -> object:
        return self._run(l4, leaves=self.pod.id == CLIENT_POD)

    def send(self, data: bytes, at: int = 0) -> object:
        """A segment, `at` bytes behind the first."""
        return self._send(tcp(self.port, 443, "PA", data, seq=(START + at) & 0xFFFFFFFF, ack=501))

    def acknowledge(self, count: int, flags: str = "A") -> None:
        """The server has so many bytes."""
        l4 = tcp(443, self.port, flags, seq=500, ack=(START + count) & 0xFFFFFFFF)
        assert self._run(l4, leaves=self.pod.id == SERVER_POD).verdict == TC_ACT_OK


def is_reset(result: object, expected: int) -> bool:
    """Whether the server is told that the connection is over."""
    packet = result.packet  # type: ignore[attr-defined]
    seen = parse(packet)[TCP]
    assert checksums_hold(packet)
    return "R" in str(seen.flags) and seen.seq == (START + expected) & 0xFFFFFFFF and not bytes(seen.payload)


def passes(result: object, data: bytes) -> bool:
    return result.verdict == TC_ACT_OK and bytes(parse(result.packet)[TCP].payload) == data  # type: ignore[attr-defined]


@pytest.mark.parametrize("site", [SITE, "2001:db8::44"])
def test_the_name_decides(node: Node, pod: Pod, names: Names, site: str) -> None:
    assert passes(Connection(node, pod, site).send(ALLOWED), ALLOWED)
    for first in (FORBIDDEN, NAMELESS, b"GET / HTTP/1.1\r\n\r\n", b"\x16"):
        connection = Connection(node, pod, site)
        result = connection.send(first)
        if first == b"\x16":
            assert passes(result, first)
            continue
        assert is_reset(result, 0), first
        assert connection.send(ALLOWED).verdict == TC_ACT_SHOT  # type: ignore[attr-defined]
    told = [(bytes(e["name"]), int(e["drop_reason"])) for e in names.events() if e["type"] == EventType.TLS_HELLO]
    assert told == [
        (b"api.example.com.", 0),
        (b"evil.example.com.", DropReason.TLS_DENIED),
        (b"", DropReason.TLS_DENIED),
        (b"", DropReason.TLS_MALFORMED),
    ]


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("API.example.COM", True),
        ("a.one.test", True),
        ("a.b.one.test", False),
        ("one.test", False),
        ("a.b.deep.test", True),
        ("deep.test", False),
    ],
)
def test_wildcards(node: Node, pod: Pod, name: str, fine: bool) -> None:
    first = hello(name)
    result = Connection(node, pod).send(first)
    assert passes(result, first) if fine else is_reset(result, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(ALLOWED) - 1), max_size=6), allowed=st.booleans())
def test_every_segmentation_comes_to_the_same(node: Node, pod: Pod, cuts: list[int], allowed: bool) -> None:
    whole = ALLOWED if allowed else FORBIDDEN
    places = [0, *sorted({cut for cut in cuts if cut < len(whole)}), len(whole)]
    connection = Connection(node, pod)
    verdicts = []
    for at, end in itertools.pairwise(places):
        result = connection.send(whole[at:end], at)
        verdicts.append(passes(result, whole[at:end]))
        if not verdicts[-1]:
            assert is_reset(result, at)
            break
    assert all(verdicts) == allowed


@st.composite
def bent(draw: st.DrawFn) -> bytes:
    raw = bytearray(draw(st.sampled_from([ALLOWED, FORBIDDEN, NAMELESS])))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.one_of(st.integers(0, 60), st.integers(0, len(raw) - 1)))
        raw[place] = draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 3, 22, 255])))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(raw)))
        raw[place:place] = draw(st.binary(max_size=40))
    return bytes(raw[: draw(st.integers(1, len(raw)))] if draw(st.booleans()) else raw)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=bent())
def test_any_first_bytes_are_judged_as_the_model_says(node: Node, pod: Pod, raw: bytes) -> None:
    said = model.server_name(raw)
    fine = said == model.MORE or (
        said not in (model.NOBODY, model.MALFORMED) and any(matches(pattern, said) for pattern in PATTERNS)
    )
    result = Connection(node, pod).send(raw)
    assert passes(result, raw) if fine else is_reset(result, 0), said


def test_a_repetition_must_say_the_same(node: Node, pod: Pod) -> None:
    connection = Connection(node, pod)
    assert passes(connection.send(ALLOWED), ALLOWED)
    assert passes(connection.send(ALLOWED), ALLOWED)
    place = ALLOWED.index(b"api.example.com")
    other = ALLOWED[:place] + b"bad" + ALLOWED[place + 3 :]
    assert is_reset(connection.send(other), len(ALLOWED))
    connection = Connection(node, pod)
    half = place + 4
    assert passes(connection.send(ALLOWED[:half]), ALLOWED[:half])
    assert is_reset(connection.send(other), half)


def test_segments_out_of_order_come_again(node: Node, pod: Pod) -> None:
    connection = Connection(node, pod)
    assert connection.send(ALLOWED[100:], 100).verdict == TC_ACT_SHOT  # type: ignore[attr-defined]
    assert passes(connection.send(ALLOWED[:100]), ALLOWED[:100])
    assert passes(connection.send(ALLOWED[100:], 100), ALLOWED[100:])


def test_a_message_in_two_records_is_refused(node: Node, pod: Pod) -> None:
    body = ALLOWED[5:]
    parts = [body[:60], body[60:]]
    divided = b"".join(b"\x16\x03\x01" + struct.pack(">H", len(part)) + part for part in parts)
    assert is_reset(Connection(node, pod).send(divided), 0)


def test_what_follows_passes_and_rules_change_under_it(node: Node, pod: Pod, names: Names) -> None:
    connection = Connection(node, pod)
    size = len(ALLOWED)
    assert passes(connection.send(ALLOWED), ALLOWED)
    assert passes(connection.send(b"early", size), b"early")
    connection.acknowledge(size + 5)
    assert passes(connection.send(b"data", size + 5), b"data")
    assert [key for key, _ in node.map("tls_servers").items()]
    assert not [key for key, _ in node.map("tls_conns").items()]
    for patterns, fine in (("api.*.com", True), ("other.test", False)):
        names.write({RULESET: PATTERNS, RULESET + 1: [patterns]})
        ruleset = L7Kind.TLS.ruleset(RULESET + 1 if fine else RULESET + 2)
        node.rule(pod, DIRECTIONS[pod.id], 0, 6, 443, l7=ruleset, rule_id=3)
        names.write({RULESET + (1 if fine else 2): [patterns]})
        node.change_policy(pod)
        result = connection.send(b"more", size + 9)
        assert passes(result, b"more") if fine else is_reset(result, size + 9)


def test_a_connection_of_which_nothing_is_known_is_reset(node: Node, pod: Pod) -> None:
    connection = Connection(node, pod)
    node.map("tls_conns").delete_batch([key for key, _ in node.map("tls_conns").items()])
    assert is_reset(connection.send(ALLOWED), 0)
