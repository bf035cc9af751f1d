"""Request streams, cut into packets any way: the kernel refuses exactly what the reference refuses, when it does, and
reports every request."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.model.verdict import DropReason
from tests.datapath.http_model import Header, Rule, Trace, allow_by, judge
from tests.datapath.http_node import Connection, HttpNode

pytestmark = pytest.mark.root

RULES = (
    Rule("GET|HEAD", "/ok(/.*)?"),
    Rule("POST", "/up"),
    Rule("GET", "/q[?]x=[0-9]+"),
    Rule("GET", "/hosted", "a[.]example(:80)?"),
    Rule("OPTIONS", r"\*"),
    Rule("GET|POST", "/tagged", headers=(Header("X-Tag", "blue sky"),)),
    Rule("GET|POST", "/tagged", "b[.]example", (Header("x-tag"),)),
    Rule("GET", "/token", headers=(Header("x-token"), Header("Content-Length"))),
)
ALLOW = allow_by(*RULES)
DENIED, MALFORMED = DropReason.HTTP_DENIED, DropReason.HTTP_MALFORMED


@pytest.fixture(scope="module")
def node(object_cache: Path) -> Iterator[HttpNode]:
    http = HttpNode(object_cache)
    try:
        http.rules(*RULES)
        yield http
    finally:
        http.close()


Event = tuple[str, str, int, int, Trace | None]


def feed(node: HttpNode, segments: list[bytes], v6: bool = False) -> tuple[int | None, list[Event]]:
    """Send segments in order. Returns the number of the one that was refused, and the events."""
    node.http_events()
    connection = Connection(node, v6=v6).open()
    offset, refused = 0, None
    for number, segment in enumerate(segments):
        outcome = connection.send(offset, segment)
        if outcome.passed and len(outcome.payload) < len(segment):
            # Cut behind what is allowed: the client sends the rest again, and the server has answered meanwhile.
            assert segment.startswith(outcome.payload)
            connection.let_answer()
            passed = len(outcome.payload)
            offset += passed
            outcome = connection.send(offset, segment[passed:])
            assert outcome.reset, outcome
        if not outcome.passed:
            assert outcome.reset, outcome
            refused = number
            break
        assert outcome.payload == segment
        offset += len(segment)
    connection.from_server("RA", seq=connection.server_isn + 1, ack=connection.seq(offset))  # no answer any more
    node.events()
    return refused, [
        (bytes(e["method"]).decode(), bytes(e["path"]).decode(), int(e["status"]), int(e["drop_reason"]), node.trace(e))
        for e in node.http_events()
    ]


def expected(segments: list[bytes]) -> tuple[int | None, list[Event], DropReason | None]:
    def events() -> list[Event]:
        return [(r.method[:16], r.path[:136], 0, 0, r.trace) for r in result.requests]

    stream = b""
    for number, segment in enumerate(segments):
        stream += segment
        result = judge(stream, ALLOW)
        if result.refused is not None:
            return number, events(), result.refused
    result = judge(stream, ALLOW)
    return None, events(), None


def check(node: HttpNode, segments: list[bytes], v6: bool = False) -> DropReason | None:
    refused, events = feed(node, segments, v6)
    at, allowed, reason = expected(segments)
    assert refused == at, (segments, reason, events)
    assert [event for event in events if not event[2]] == allowed
    answered = reason in (DropReason.HTTP_DENIED, DropReason.HTTP_MALFORMED, DropReason.HTTP_TOO_LARGE)
    assert [(event[2], event[3]) for event in events if event[2]] == ([(403, reason)] if answered else [])
    return reason


def get(path: str = "/ok", *fields: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    return "".join((f"{method} {path} {version}\r\n", *(f"{f}\r\n" for f in fields), "\r\n")).encode("latin-1")


def post(*fields: str, body: bytes = b"") -> bytes:
    return get("/up", *fields, method="POST") + body


TRACE = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER_TRACE = "TRACEPARENT:01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-later \t "
CHUNKED = "Transfer-Encoding: chunked"
CASES: list[tuple[str, bytes, DropReason | None]] = [
    ("plain", get(), None),
    ("host and more", get("/ok/a/b", "Host: x:80", "Accept: */*", "X: \xe9"), None),
    ("HTTP/1.0", get(version="HTTP/1.0"), None),
    ("HEAD", get(method="HEAD"), None),
    ("empty lines before", b"\r\n\r\n" + get(), None),
    ("asterisk", get("*", method="OPTIONS"), None),
    ("pipelined", get() + get("/ok/x") + get(), None),
    ("pipelined, the second denied", get() + get("/no"), DENIED),
    ("length", post("Content-Length: 5", body=b"hello") + get(), None),
    ("length zero", post("Content-Length: 0") + get(), None),
    ("length with blanks", post("Content-Length: \t 5 \t", body=b"hello") + get(), None),
    ("body that looks like a request", post("Content-Length: 22", body=b"GET /no HTTP/1.1\r\n\r\nxx") + get(), None),
    ("chunked", post(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n") + get(), None),
    ("chunked, extension, trailer", post(CHUNKED, body=b"1;a=b\r\nh\r\n0\r\nT: x\r\n\r\n") + get(), None),
    ("chunked in capitals", post("TRANSFER-ENCODING: Chunked", body=b"A\r\n0123456789\r\n0\r\n\r\n") + get(), None),
    ("after chunks denied", post(CHUNKED, body=b"0\r\n\r\n") + get("/no"), DENIED),
    ("query", get("/q?x=12"), None),
    ("query is part of what is matched", get("/q?x=a"), DENIED),
    ("query on a path without", get("/ok?x"), DENIED),
    ("unreserved escape", get("/%6fk"), None),
    ("kept escape", get("/ok/%20x%C3%a9"), None),
    ("absolute form", get("http://host:80/ok"), None),
    ("absolute form without path", get("http://host"), DENIED),
    ("host rule", get("/hosted", "Host: a.example"), None),
    ("host rule, port", get("/hosted", "Host: a.example:80"), None),
    ("host rule, other host", get("/hosted", "Host: b.example"), DENIED),
    ("host rule, no host", get("/hosted"), DENIED),
    ("host rule, absolute form", get("http://a.example/hosted", "Host: a.example"), DENIED),
    ("ordinary names that begin alike", get("/ok", "Content-Lengthy: x", "Hos: y", "Transfer: z", "C: d"), None),
    ("header", get("/tagged", "X-Tag: blue sky"), None),
    ("header in other letters, spaces before", get("/tagged", "Host: x", "x-tAG:   blue sky", "A: b"), None),
    ("header without a space", get("/tagged", "X-Tag:blue sky"), None),
    ("header, a tab before", get("/tagged", "X-Tag:\tblue sky"), DENIED),
    ("header, a space behind", get("/tagged", "X-Tag: blue sky "), DENIED),
    ("header, a tab behind", get("/tagged", "X-Tag: blue sky\t"), DENIED),
    ("host rule, a space behind", get("/hosted", "Host: a.example "), DENIED),
    ("host rule, a tab before", get("/hosted", "Host:\ta.example"), DENIED),
    ("host that nothing depends on, blanks", get("/ok", "Host:\ta.example "), None),
    ("header, absolute form", get("http://h/tagged", "X-Tag: blue sky"), None),
    ("header, other value", get("/tagged", "X-Tag: blue"), DENIED),
    ("header, longer value", get("/tagged", "X-Tag: blue skyx"), DENIED),
    ("header, other letters in the value", get("/tagged", "X-Tag: Blue sky"), DENIED),
    ("header, no value", get("/tagged", "X-Tag:"), DENIED),
    ("header missing", get("/tagged", "Host: x"), DENIED),
    ("header, no fields at all", get("/tagged"), DENIED),
    ("header twice", get("/tagged", "X-Tag: blue sky", "X-Tag: blue sky"), DENIED),
    ("header twice, the first one other", get("/tagged", "X-Tag: red", "X-Tag: blue sky"), DENIED),
    ("header three times", get("/tagged", "X-Tag: blue sky", "X-Tag: red", "X-Tag: blue sky"), DENIED),
    ("header and its alias", get("/tagged", "X_Tag: red", "X-Tag: blue sky"), DENIED),
    ("header and an alias behind it", get("/tagged", "X-Tag: blue sky", "x_tag: blue sky"), DENIED),
    ("alias alone", get("/tagged", "X_Tag: blue sky"), DENIED),
    ("header of a longer name", get("/tagged", "X-Tag-: blue sky", "XX-Tag: blue sky"), DENIED),
    ("header with a byte beyond ASCII", get("/tagged", "X-Tag: blue sk\xf9"), DENIED),
    ("header in the query only", get("/tagged?X-Tag:blue sky"), MALFORMED),
    ("header presence with a host", get("/tagged", "X-Tag: \xe9", "Host: b.example"), None),
    ("header presence with a host, twice", get("/tagged", "Host: b.example", "X-Tag: a", "X-Tag: b"), None),
    ("header presence with a host, absolute form", get("http://b.example/tagged", "X-Tag: a"), DENIED),
    ("header presence, other host", get("/tagged", "Host: c.example", "X-Tag: red"), DENIED),
    ("two headers", get("/token", "Content-Length: 0", "X-Token: a"), None),
    ("one of two headers", get("/token", "X-Token: a"), DENIED),
    (
        "header in a trailer does not count",
        get("/tagged", CHUNKED, method="POST") + b"0\r\nX-Tag: blue sky\r\n\r\n",
        DENIED,
    ),
    (
        "chunks behind a header",
        get("/tagged", CHUNKED, "X-Tag: blue sky", method="POST") + b"1\r\nx\r\n0\r\n\r\n" + get(),
        None,
    ),
    ("traces of pipelined requests", get("/ok", TRACE) + get() + get("/ok/x", OTHER_TRACE, "A: b"), None),
    ("trace beside fields of a rule", get("/tagged", TRACE, "X-Tag: blue sky"), None),
    ("trace twice, the second empty", get("/ok", TRACE, "Traceparent:"), None),
    ("trace in a trailer", post(CHUNKED, body=b"0\r\n" + TRACE.encode() + b"\r\n\r\n"), None),
    ("trace and a body", post("content-length: 2", TRACE.title(), body=b"hi") + get("/ok", TRACE), None),
    ("pipelined headers", get("/tagged", "X-Tag: blue sky") + get("/tagged"), DENIED),
    ("denied path", get("/no"), DENIED),
    ("denied method", get("/ok", method="POST"), DENIED),
    ("prefix of an allowed path", get("/o"), DENIED),
    ("longer than an allowed path", get("/okay"), DENIED),
    ("long path", get("/ok/" + "x" * 3000), None),
    ("long head", get("/ok", *(f"X-{i}: {'y' * 100}" for i in range(60))), None),
    # What two implementations could read differently.
    ("two lengths", post("Content-Length: 5", "Content-Length: 5", body=b"hello"), MALFORMED),
    ("length list", post("Content-Length: 5, 5", body=b"hello"), MALFORMED),
    ("length and coding", post("Content-Length: 5", CHUNKED), MALFORMED),
    ("coding and length", post(CHUNKED, "Content-Length: 5"), MALFORMED),
    ("coding twice", post(CHUNKED, CHUNKED), MALFORMED),
    ("coding list", post("Transfer-Encoding: chunked, identity"), MALFORMED),
    ("coding identity", post("Transfer-Encoding: identity"), MALFORMED),
    ("coding glued", post("Transfer-Encoding: xchunked"), MALFORMED),
    ("coding split", post("Transfer-Encoding: chunk ed"), MALFORMED),
    ("coding in HTTP/1.0", get("/up", CHUNKED, method="POST", version="HTTP/1.0"), MALFORMED),
    ("space before colon", post("Content-Length : 5"), MALFORMED),
    ("tab before colon", post("Content-Length\t: 5"), MALFORMED),
    ("signed length", post("Content-Length: +5"), MALFORMED),
    ("hex length", post("Content-Length: 0x5"), MALFORMED),
    ("empty length", post("Content-Length:"), MALFORMED),
    ("huge length", post("Content-Length: 1000000000000000"), MALFORMED),
    ("underscore", post("Content_Length: 5"), MALFORMED),
    ("underscore in coding", post("Transfer_Encoding: chunked"), MALFORMED),
    ("folded line", get("/ok", "X: a", " b"), MALFORMED),
    ("folded first line", get("/ok", " X: a"), MALFORMED),
    ("field without a colon", get("/ok", "X"), MALFORMED),
    ("field without a name", get("/ok", ": x"), MALFORMED),
    ("bare LF in the head", b"GET /ok HTTP/1.1\nHost: x\r\n\r\n", MALFORMED),
    ("bare LF after a field", b"GET /ok HTTP/1.1\r\nX: y\nZ: a\r\n\r\n", MALFORMED),
    ("bare LF at the end", b"GET /ok HTTP/1.1\r\n\n", MALFORMED),
    ("bare CR in a value", get("/ok", "X: a\rb"), MALFORMED),
    ("bare CR in the line", b"GET /ok\rHTTP/1.1\r\n\r\n", MALFORMED),
    ("NUL in a value", get("/ok", "X: a\0b"), MALFORMED),
    ("NUL in the path", get("/ok/\0"), MALFORMED),
    ("NUL first", b"\0" + get(), MALFORMED),
    ("escaped NUL", get("/ok/%00"), MALFORMED),
    ("escaped slash", get("/ok%2fx"), MALFORMED),
    ("escaped backslash", get("/ok/%5Cx"), MALFORMED),
    ("escaped percent", get("/ok/%252e"), MALFORMED),
    ("escaped semicolon", get("/ok/..%3bx"), MALFORMED),
    ("broken escape", get("/ok/%2"), MALFORMED),
    ("no escape", get("/ok/%gg"), MALFORMED),
    ("backslash", get("/ok\\x"), MALFORMED),
    ("doubled slash", get("//ok"), MALFORMED),
    ("doubled slash inside", get("/ok//x"), MALFORMED),
    ("dot segment", get("/ok/./x"), MALFORMED),
    ("dot dot", get("/ok/../no"), MALFORMED),
    ("dot dot at the end", get("/ok/.."), MALFORMED),
    ("dot before query", get("/ok/.?x"), MALFORMED),
    ("escaped dots", get("/ok/%2e%2E/no"), MALFORMED),
    ("half escaped dots", get("/ok/.%2e/no"), MALFORMED),
    ("dots with parameter", get("/ok/..;x/no"), MALFORMED),
    ("parameter of an empty segment", get("/ok/;x"), MALFORMED),
    ("fragment", get("/ok#x"), MALFORMED),
    ("raw UTF-8", get("/ok/\xc3\xa9"), MALFORMED),
    ("user in authority", get("http://a@b/ok"), MALFORMED),
    ("empty authority", get("http:///ok"), MALFORMED),
    ("CONNECT", get("host:80", method="CONNECT"), MALFORMED),
    ("no slash", get("ok"), MALFORMED),
    ("HTTP/0.9", b"GET /ok\r\n", MALFORMED),
    ("two spaces", b"GET  /ok HTTP/1.1\r\n\r\n", MALFORMED),
    ("tab", b"GET\t/ok HTTP/1.1\r\n\r\n", MALFORMED),
    ("space before the method", b" GET /ok HTTP/1.1\r\n\r\n", MALFORMED),
    ("space behind the version", b"GET /ok HTTP/1.1 \r\n\r\n", MALFORMED),
    ("small method", get(method="get"), MALFORMED),
    ("long method", get(method="G" * 21), MALFORMED),
    ("HTTP/1.2", get(version="HTTP/1.2"), MALFORMED),
    ("HTTP/11", get(version="HTTP/11"), MALFORMED),
    ("small version", get(version="http/1.1"), MALFORMED),
    ("two hosts", get("/ok", "Host: a", "Host: b"), MALFORMED),
    ("host with a user", get("/hosted", "Host: a@b"), MALFORMED),
    ("host list", get("/hosted", "Host: a.example, b"), MALFORMED),
    ("host that nothing depends on", get("/ok", "Host: a, b"), None),
    ("chunk without size", post(CHUNKED, body=b"\r\n"), MALFORMED),
    ("chunk size with a sign", post(CHUNKED, body=b"+1\r\nx"), MALFORMED),
    ("chunk size with a prefix", post(CHUNKED, body=b"0x1\r\nx"), MALFORMED),
    ("chunk size with a blank", post(CHUNKED, body=b"1 \r\nx"), MALFORMED),
    ("huge chunk", post(CHUNKED, body=b"1000000000000\r\n"), MALFORMED),
    ("bare LF behind a chunk size", post(CHUNKED, body=b"1\nx\r\n0\r\n\r\n"), MALFORMED),
    ("bare LF in an extension", post(CHUNKED, body=b"1;a\nx\r\n0\r\n\r\n"), MALFORMED),
    ("no line end behind a chunk", post(CHUNKED, body=b"1\r\nxx0\r\n\r\n"), MALFORMED),
    ("TLS", b"\x16\x03\x01\x02\x00\x01", DropReason.HTTP_TLS),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", DropReason.HTTP_HTTP2),
    ("binary", b"\x80\x81", MALFORMED),
]


@pytest.mark.parametrize(("stream", "reason"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_cases(node: HttpNode, stream: bytes, reason: DropReason | None) -> None:
    assert judge(stream, ALLOW).refused == reason
    whole = [stream[i : i + 1400] for i in range(0, len(stream), 1400)]
    assert check(node, whole) == reason
    assert check(node, whole, v6=True) == reason
    if len(stream) < 200:
        assert check(node, [stream[i : i + 1] for i in range(len(stream))]) == reason
        for cut in range(7, len(stream), 13):
            check(node, [stream[:cut], stream[cut:]], v6=bool(cut % 2))


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({c % len(stream) for c in cuts} | {0, len(stream)})
    return [stream[a:b] for a, b in itertools.pairwise(places)]


MESSAGES = st.sampled_from([stream for _, stream, reason in CASES if reason is None and len(stream) < 400])
ANY = st.sampled_from([stream for _, stream, _ in CASES if len(stream) < 400])
CUTS = st.lists(st.integers(0, 3000), max_size=6)
PROFILE = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(st.lists(MESSAGES, min_size=1, max_size=5), ANY, CUTS, st.booleans())
@PROFILE
def test_streams_in_pieces(node: HttpNode, messages: list[bytes], last: bytes, cuts: list[int], v6: bool) -> None:
    check(node, cut(b"".join((*messages, last)), cuts), v6)


@given(ANY, st.data(), CUTS)
@PROFILE
def test_damaged_streams(node: HttpNode, stream: bytes, data: st.DataObject, cuts: list[int]) -> None:
    at = data.draw(st.integers(0, len(stream) - 1))
    byte = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b"\r\n \t:/.%;?#-+0")))
    mutate = data.draw(st.sampled_from(["replace", "insert", "delete"]))
    damaged = stream[:at] + (bytes((byte,)) if mutate != "delete" else b"") + stream[at + (mutate != "insert") :]
    if damaged:
        check(node, cut(damaged + get(), cuts))


@given(
    st.lists(st.sampled_from(["0", "1\r\n", "a", "F", ";x", "\r\n", "y" * 10, "0\r\n\r\n", "T: u\r\n"]), max_size=12),
    CUTS,
)
@PROFILE
def test_chunks(node: HttpNode, parts: list[str], cuts: list[int]) -> None:
    check(node, cut(post(CHUNKED) + "".join(parts).encode(), cuts))


def test_many_requests_in_one_packet(node: HttpNode) -> None:
    full = get() * 72  # as many as fit into 1,450 bytes
    assert check(node, [full]) is None
    assert check(node, [full + get("/no")]) == DENIED


def test_a_packet_beyond_the_budget_is_dropped_whole_and_may_come_in_pieces(node: HttpNode) -> None:
    """Only by aggregation: what TCP sends after a loss is one segment."""
    head = post(CHUNKED)
    chunks = b"1\r\nx\r\n" * 540
    connection = Connection(node).open()
    assert connection.send(0, head).passed
    assert connection.send(len(head), chunks).dropped
    assert node.events()[-1]["drop_reason"] == DropReason.HTTP_TOO_LARGE
    for at in range(0, len(chunks), 1398):
        assert connection.send(len(head) + at, chunks[at : at + 1398]).passed
    node.http_events()
    # Where it does not come in pieces, the connection ends.
    other = Connection(node).open()
    assert other.send(0, head).passed
    assert other.send(len(head), chunks).dropped
    assert other.send(len(head), chunks).dropped
    assert other.send(len(head), chunks).reset
    node.http_events()


def test_a_head_without_end_is_refused(node: HttpNode) -> None:
    connection = Connection(node).open()
    line = b"X: " + b"y" * 995 + b"\r\n"
    assert connection.send(0, b"GET /ok HTTP/1.1\r\n").passed
    offset = 18
    for _ in range(64):
        assert connection.send(offset, line).passed
        offset += len(line)
    while (outcome := connection.send(offset, line)).passed:
        offset += len(line)
        assert offset < 70000
    assert outcome.reset
    assert [e["drop_reason"] for e in node.http_events()] == [DropReason.HTTP_TOO_LARGE]


IDS = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
GOOD = f"00-{IDS}-01"
TRACEPARENTS = [
    GOOD,
    f" {GOOD}",
    f"\t {GOOD} \t",
    " " * 8 + GOOD,
    " " * 9 + GOOD,
    GOOD + " " * 8,
    GOOD + " " * 9,
    f" {GOOD}{' ' * 8}",
    f"00-{IDS}-00",
    f"00-{IDS}-ff",
    f"{GOOD}-",
    f"{GOOD}-more",
    f"01-{IDS}-01-",
    f"cc-{IDS}-03-what ever",
    f"fe-{IDS}-01",
    f"01-{IDS}-01.",
    f"01-{IDS}-01x",
    f"ff-{IDS}-01",
    f"00-{IDS.upper()}-01",
    f"0O-{IDS}-01",
    f"00-{IDS}-0g",
    f"00-{IDS}-1",
    f"00-{'0' * 32}-b7ad6b7169203331-01",
    f"00-{IDS[:32]}-{'0' * 16}-01",
    f"00_{IDS}-01",
    f"00-{IDS[:32]}.{IDS[33:]}-01",
    f"00-{IDS}_01",
    "",
    " ",
    "00",
    GOOD[:-1],
    f"x{GOOD}",
    f"{GOOD}{GOOD}",
    f"{GOOD},{GOOD}",
    f"00-{IDS}-\xe9\xe9",
    "-" * 55,
    f"00-{'0' * 31}1-{'0' * 15}1-00",
    f"00-1{'0' * 31}-1{'0' * 15}-00",
    f"00-{'0123456789abcdef' * 2}-{'f' * 16}-a9",
]


@pytest.mark.parametrize("value", TRACEPARENTS)
def test_traceparents(node: HttpNode, value: str) -> None:
    """Read where they stand in the head, told with the request whatever they say, never a reason to refuse."""
    stream = get("/ok", "Host: x", f"TraceParent:{value}", "Traceparents: y", "Traceparen: z")
    assert check(node, [stream]) is None
    at = stream.index(b"TraceParent:")
    for place in (at + 5, at + 12, at + 20, at + 60, at + 12 + len(value)):
        assert check(node, [stream[:place], stream[place:]]) is None
    assert check(node, [get(), stream[: at + 14], stream[at + 14 : at + 30], stream[at + 30 :] + stream, get()]) is None
    # A request that its line refuses belongs to a trace, too.
    denied = stream.replace(b"/ok", b"/no")
    assert check(node, [denied]) == DENIED
    feed(node, [get() + get("/ok", TRACE)])
    _, events = feed(node, [denied])
    assert [event[4] for event in events] == [judge(stream, ALLOW).requests[0].trace]


CHARACTERS = st.sampled_from("0123456789abcdefABFgf-- \t/:`'@~\x7f\xe1")


@given(st.sampled_from(TRACEPARENTS[:12]), st.lists(st.tuples(st.integers(0, 70), CHARACTERS), max_size=2), CUTS)
@PROFILE
def test_damaged_traceparents(node: HttpNode, value: str, changes: list[tuple[int, str]], cuts: list[int]) -> None:
    for at, character in changes:
        value = value[:at] + character + value[at + 1 :]
    field = f"traceparent:{value}"
    check(node, cut(get("/ok", field) + get("/tagged", field, "X-Tag: blue sky"), cuts))
