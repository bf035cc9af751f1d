"""DNS rules and what answers teach: single packets against a readable model, then stories of a pod and its server."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.agent.abi.events import EventType
from services.model.verdict import Direction, DropReason
from tests.datapath import dns_model as model
from tests.datapath.dns_node import RULESET, SERVER, Asker, Names, alias, answer, encode, payload, question, record
from tests.datapath.node import TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, Node
from tests.datapath.packets import checksums_hold, from_pod, parse, tcp, udp

pytestmark = pytest.mark.root
PATTERNS = ("api.example.com", "*.svc.local", "**.deep.net", "pre*.example.org")
SELECTORS = ("api.example.com", "*.example.com", "cdn.example.net")


@pytest.fixture
def names(node: Node) -> Iterator[Names]:
    found = Names(node)
    found.write({RULESET: PATTERNS})
    found.events()
    yield found
    found.close()


@pytest.fixture
def open_names(node: Node) -> Iterator[Names]:
    found = Names(node)
    found.write({RULESET: ["*"]}, SELECTORS)
    found.events()
    yield found
    found.close()


def test_allowed_questions_go_on_and_others_are_refused(node: Node, names: Names) -> None:
    pod = Asker(node, names)
    for name, fine in [
        ("api.example.com", True),
        ("API.Example.COM", True),
        ("xapi.example.com", False),
        ("a.svc.local", True),
        ("a.b.svc.local", False),
        ("a.b.deep.net", True),
        ("deep.net", False),
        ("prefix.example.org", True),
        ("", False),
    ]:
        done = pod.ask(question(name))
        assert done.verdict == (TC_ACT_OK if fine else TC_ACT_REDIRECT), name
    kinds = [(int(e["type"]), int(e["drop_reason"])) for e in names.events()]
    assert kinds.count((EventType.DNS_QUERY, 0)) == 5
    assert kinds.count((EventType.DNS_QUERY, DropReason.DNS_DENIED)) == 4


@pytest.mark.parametrize("server", [SERVER, "2001:db8::53"])
@pytest.mark.parametrize("edns", [False, True])
def test_the_refusal_is_an_answer_to_the_question(node: Node, names: Names, server: str, edns: bool) -> None:
    pod = Asker(node, names, server=server)
    asked = question("Evil.Example", 28, 4711, edns=edns)
    done = pod.ask(asked)
    assert done.verdict == TC_ACT_REDIRECT
    seen = parse(done.packet)
    assert (seen.src, seen.dst) == ("02:00:00:00:ff:01", pod.pod.mac)
    assert seen.payload.src == server
    assert seen.payload.payload.sport == 53
    message = model.read(asked)
    assert message is not None
    assert payload(done.packet) == model.refusal(asked, message)
    assert checksums_hold(done.packet)
    # It goes to the pod through the same hook as the server's own packets, and is no answer to learn from.
    heard = node.run("to_endpoint", done.packet, pod.pod.ifindex, mark=0xC1110003)
    assert heard.verdict == TC_ACT_OK


LABEL = st.text("abcxyzAPI0-_", min_size=1, max_size=8)
NAME = st.one_of(
    st.sampled_from(["api.example.com", "x.svc.local", "pre.example.org", "a.b.deep.net"]),
    st.lists(LABEL, max_size=6).map(".".join),
    st.lists(st.text("abc", min_size=50, max_size=63), min_size=4, max_size=5).map(".".join),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    raw = bytearray(
        question(draw(NAME), draw(st.integers(0, 300)), draw(st.integers(0, 65535)), edns=draw(st.booleans()))
    )
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([None, None, None, draw(st.integers(0, len(raw)))]))
    return bytes(raw[:cut])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=messages())
def test_any_bytes_are_judged_as_the_model_says(node: Node, names: Names, raw: bytes) -> None:
    pod = Asker(node, names)
    done = pod.ask(raw)
    message = model.read(raw)
    if message is None or not model.is_question(message):
        assert done.verdict == TC_ACT_SHOT
    elif model.allowed(message, PATTERNS):
        assert done.verdict == TC_ACT_OK
    else:
        assert done.verdict == TC_ACT_REDIRECT
        assert payload(done.packet) == model.refusal(raw, message)
        assert checksums_hold(done.packet)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    owner = st.sampled_from([b"\xc0\x0c", encode("api.example.com"), encode("x") + b"", b"\x01a\xc0\x0c"])
    ttl = st.sampled_from([0, 1, 60, 300, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    one = st.one_of(
        st.builds(record, st.sampled_from(["203.0.113.1", "203.0.113.2", "2001:db8::1"]), ttl, owner),
        st.builds(alias, st.sampled_from(["cdn.example.net", "b"]), ttl, owner),
        st.just(b"\xc0\x0c" + struct.pack(">HHIH", 16, 1, 5, 3) + b"\x02hi"),
    )
    raw = bytearray(answer(question("api.example.com"), draw(st.lists(one, max_size=12))))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        place = draw(st.integers(6, len(raw) - 1))
        raw[place] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([None, None, None, draw(st.integers(12, len(raw)))]))
    return bytes(raw[:cut])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=answers())
def test_any_answer_teaches_what_the_model_says(node: Node, open_names: Names, raw: bytes) -> None:
    node.map("fqdn_ips").delete_batch([key for key, _ in node.map("fqdn_ips").items()])
    pod = Asker(node, open_names)
    pod.ask(question("api.example.com"))
    done = pod.hear(raw)
    message = model.read(raw)
    fits = (
        message is not None
        and message.flags & model.QR
        and (message.name, message.qtype, message.qclass)
        == (
            "api.example.com.",
            1,
            1,
        )
    )
    taught = model.teach(raw, message) if message is not None and fits else None
    learned = {key for key, _ in node.map("fqdn_ips").items()}
    if taught is None or message is None:
        assert done.verdict == TC_ACT_SHOT
        assert not learned
        return
    assert done.verdict == TC_ACT_OK
    assert done.packet[42:] == raw
    assert learned == (set(taught.addresses) if not message.flags & 15 else set())
    if learned:
        assert open_names.known()["api.example.com."].ttl == taught.ttl


def test_an_error_need_not_repeat_the_question(node: Node, open_names: Names) -> None:
    """A server that does not know EDNS may say so by a header only (RFC 6891, 7)."""
    pod = Asker(node, open_names)
    pod.ask(question("api.example.com", edns=True))
    bare = struct.pack(">6H", 77, 0x8181, 0, 0, 0, 0)
    assert pod.hear(bare).verdict == TC_ACT_OK
    records = record("203.0.113.1")
    for wrong in (
        struct.pack(">6H", 78, 0x8181, 0, 0, 0, 0),  # not asked
        struct.pack(">6H", 77, 0x0181, 0, 0, 0, 0),  # not an answer
        struct.pack(">6H", 77, 0x8180, 0, 0, 0, 0),  # not an error
        struct.pack(">6H", 77, 0x8181, 0, 1, 0, 0) + records,
        struct.pack(">6H", 77, 0x8180, 0, 1, 0, 0) + records,
    ):
        assert pod.hear(wrong).verdict == TC_ACT_SHOT
    assert not list(node.map("fqdn_ips").items())


def test_an_address_opens_with_the_answer_and_not_before(node: Node, open_names: Names) -> None:
    pod = Asker(node, open_names)
    pod.allow({"*.example.com", "api.example.com"})
    assert pod.connect("203.0.113.10") == TC_ACT_SHOT
    asked = question("api.example.com")
    pod.ask(asked)
    reply = answer(asked, [alias("edge.example.net", 20), record("203.0.113.10", 300), record("203.0.113.11", 60)])
    assert pod.hear(reply).verdict == TC_ACT_OK
    assert pod.connect("203.0.113.10", sport=1) == TC_ACT_OK
    assert pod.connect("203.0.113.11", sport=2) == TC_ACT_OK
    assert pod.connect("203.0.113.10", port=80, sport=3) == TC_ACT_SHOT
    assert pod.connect("203.0.113.12", sport=4) == TC_ACT_SHOT
    assert open_names.known()["api.example.com."].ttl == 20
    told = [event for event in open_names.events() if event["type"] == EventType.DNS_ANSWER]
    assert len(told) == 1
    assert (told[0]["answers"], told[0]["ttl"], told[0]["name"]) == (2, 20, b"api.example.com.")
    assert told[0]["addresses"][1].tobytes()[12:] == bytes([203, 0, 113, 11])


def test_flows_say_which_names_an_answer_leads_over(node: Node, open_names: Names) -> None:
    asker = Asker(node, open_names)
    pointed = struct.pack(">BBBB", 3, *b"cdn") + b"\xc0\x10"  # cdn, and what is behind api of the question
    for records, expected in (
        ([alias("a.b.test"), record("203.0.113.8")], ["a.b.test."]),
        (
            [b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 9, 6) + pointed[:6], alias("z.test")],
            ["cdn.example.com.", "z.test."],
        ),
        ([alias(f"n{i}.test") for i in range(6)], ["n0.test.", "n1.test.", "n2.test.", "n3.test."]),
        ([alias("ok.test"), b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 9, 2) + b"\xc0\x42"], ["ok.test."]),
        ([alias(".".join(["x" * 60] * 3)), alias(".".join(["y" * 60] * 3))], [".".join(["x" * 60] * 3) + "."]),
        ([record("203.0.113.8")], []),
    ):
        asked = question("api.example.com")
        asker.ask(asked)
        open_names.events()
        assert asker.hear(answer(asked, records)).verdict == TC_ACT_OK
        (event,) = open_names.events()
        told = event["aliases"].tobytes()[: int(event["aliases_len"])].decode("latin-1")
        assert told.split("\0")[:-1] == expected, records


def test_ipv6_addresses_are_learned(node: Node, open_names: Names) -> None:
    pod = Asker(node, open_names)
    pod.allow({"*.example.com"})
    asked = question("www.example.com", 28)
    pod.ask(asked)
    pod.hear(answer(asked, [record("2001:db8:7::9")]))
    assert pod.connect("2001:db8:7::9") == TC_ACT_OK
    assert pod.connect("2001:db8:7::a", sport=2) == TC_ACT_SHOT


def test_spoofed_answers_teach_nothing_and_do_not_arrive(node: Node, open_names: Names) -> None:
    pod = Asker(node, open_names)
    pod.allow({"*.example.com", "api.example.com"})
    asked = question("api.example.com", number=9)
    records = [record("203.0.113.66")]
    assert pod.hear(answer(asked, records)).verdict == TC_ACT_SHOT  # nobody asked
    pod.ask(asked)
    lies = {
        "another id": lambda: pod.hear(answer(asked, records, number=10)),
        "another server": lambda: pod.hear(answer(asked, records), server="192.0.2.99"),
        "another server's port": lambda: pod.hear(answer(asked, records), port=5353),
        "another of the pod's ports": lambda: pod.hear(answer(asked, records), sport=40001),
        "another name": lambda: pod.hear(answer(question("www.example.com", number=9), records)),
        "another type": lambda: pod.hear(answer(question("api.example.com", 28, 9), records)),
        "a question": lambda: pod.hear(asked),
    }
    for what, lie in lies.items():
        assert lie().verdict == TC_ACT_SHOT, what
        assert not list(node.map("fqdn_ips").items()), what
    assert pod.connect("203.0.113.66") == TC_ACT_SHOT
    assert pod.hear(answer(asked, records)).verdict == TC_ACT_OK
    assert pod.connect("203.0.113.66", sport=5) == TC_ACT_OK


def test_errors_teach_nothing_and_arrive(node: Node, open_names: Names) -> None:
    pod = Asker(node, open_names)
    asked = question("api.example.com")
    for rcode in (2, 3, 5):
        pod.ask(asked)
        assert pod.hear(answer(asked, [record("203.0.113.7")], rcode)).verdict == TC_ACT_OK
    assert not open_names.addresses()


def test_an_address_ends_with_its_ttl_but_not_its_connections(node: Node, open_names: Names) -> None:
    open_names.write({RULESET: ["*"]}, SELECTORS, grace=0.3)
    pod = Asker(node, open_names)
    pod.allow({"*.example.com", "api.example.com"})
    asked = question("api.example.com")
    pod.ask(asked)
    pod.hear(answer(asked, [record("203.0.113.10", 0)]))
    assert pod.connect("203.0.113.10", sport=1) == TC_ACT_OK
    time.sleep(0.4)
    assert pod.connect("203.0.113.10", sport=2) == TC_ACT_SHOT
    node.change_policy(pod.pod)  # asked again, an open connection outlives the name
    data = from_pod(pod.pod, "203.0.113.10", tcp(1, 443, "A", b"more"))
    assert node.run("from_endpoint", data, pod.pod.ifindex).verdict == TC_ACT_OK
    pod.hear(answer(asked, [record("203.0.113.10", 0)]))
    assert pod.connect("203.0.113.10", sport=3) == TC_ACT_OK


def test_a_minimum_ttl_raises_short_ones(node: Node, open_names: Names) -> None:
    open_names.write({RULESET: ["*"]}, SELECTORS, min_ttl=100, grace=0)
    pod = Asker(node, open_names)
    asked = question("api.example.com")
    pod.ask(asked)
    pod.hear(answer(asked, [record("203.0.113.10", 1), record("203.0.113.11", 900)]))
    ends = open_names.addresses()["api.example.com."]
    left = [(end - time.monotonic_ns()) / 1e9 for end in ends.values()]
    assert len(left) == 2
    assert all(98 < seconds <= 100 for seconds in left)


def test_an_address_with_several_names_has_the_rules_of_all(node: Node, open_names: Names) -> None:
    pod = Asker(node, open_names)
    pod.allow({"*.example.com", "api.example.com"}, 443)
    pod.allow({"cdn.example.net"}, 8443)
    for name in ("cdn.example.net", "api.example.com", *(f"n{i}.nobody.test" for i in range(20))):
        asked = question(name)
        pod.ask(asked)
        pod.hear(answer(asked, [record("203.0.113.20")]))
    # Names that concern nobody made no room for themselves.
    assert pod.connect("203.0.113.20", 443, 1) == TC_ACT_OK
    assert pod.connect("203.0.113.20", 8443, 2) == TC_ACT_OK
    assert pod.connect("203.0.113.20", 22, 3) == TC_ACT_SHOT


def test_a_deny_of_the_address_beats_its_names(node: Node, open_names: Names) -> None:
    pod = Asker(node, open_names)
    pod.allow({"*.example.com", "api.example.com"})
    node.ipcache("203.0.113.0/24", (1 << 24) + 5)
    asked = question("api.example.com")
    pod.ask(asked)
    pod.hear(answer(asked, [record("203.0.113.10")]))
    assert pod.connect("203.0.113.10", sport=1) == TC_ACT_OK
    node.rule(pod.pod, Direction.EGRESS, (1 << 24) + 5, deny=True)
    assert pod.connect("203.0.113.10", sport=2) == TC_ACT_SHOT


def test_names_never_open_pods_and_nodes(node: Node, open_names: Names) -> None:
    pod = Asker(node, open_names)
    pod.allow({"*.example.com", "api.example.com"})
    other = node.pod(2, 1002)
    node.open(other)
    node.ipcache("10.244.9.9/32", 5555, node="192.0.2.2")
    asked = question("api.example.com")
    pod.ask(asked)
    pod.hear(answer(asked, [record(other.ipv4), record("10.244.9.9"), record("203.0.113.1")]))
    assert pod.connect(other.ipv4, sport=1) == TC_ACT_SHOT
    assert pod.connect("10.244.9.9", sport=2) == TC_ACT_SHOT
    assert pod.connect("203.0.113.1", sport=3) == TC_ACT_OK


def test_known_names_follow_the_selectors(node: Node, open_names: Names) -> None:
    pod = Asker(node, open_names)
    asked = question("late.example.org")
    pod.ask(asked)
    pod.hear(answer(asked, [record("203.0.113.30")]))
    assert open_names.known()["late.example.org."].identity == 0
    open_names.write({RULESET: ["*"]}, [*SELECTORS, "late.example.org"])
    pod.allow({"late.example.org"})
    assert pod.connect("203.0.113.30", sport=1) == TC_ACT_OK
    open_names.write({RULESET: ["*"]}, SELECTORS)
    assert pod.connect("203.0.113.30", sport=2) == TC_ACT_SHOT


def test_an_answer_too_large_to_learn_is_cut(node: Node, open_names: Names) -> None:
    pod = Asker(node, open_names)
    asked = question("api.example.com")
    pod.ask(asked)
    many = [record(f"203.0.113.{i}") for i in range(70)]
    done = pod.hear(answer(asked, many))
    assert done.verdict == TC_ACT_OK
    (flags,) = struct.unpack_from(">H", payload(done.packet), 2)
    assert flags & model.TC
    assert payload(done.packet)[4:12] == bytes([0, 1, 0, 0, 0, 0, 0, 0])
    assert checksums_hold(done.packet)
    assert not open_names.addresses()
    # What no selector asks for passes as it came.
    asked = question("big.nobody.test")
    pod.ask(asked)
    reply = answer(asked, many)
    assert payload(pod.hear(reply).packet) == reply


def test_fragments_carry_no_questions(node: Node, names: Names) -> None:
    pod = Asker(node, names)
    done = pod.ask(question("api.example.com"), flags="MF")
    assert done.verdict == TC_ACT_SHOT


def test_what_is_behind_the_datagram_is_no_message(node: Node, names: Names) -> None:
    pod = Asker(node, names)
    good, evil = question("api.example.com"), question("evil.example")
    packet = bytearray(from_pod(pod.pod, SERVER, udp(1, 53, good + evil)))
    struct.pack_into(">H", packet, 38, 8 + len(good))
    assert node.run("from_endpoint", bytes(packet), pod.pod.ifindex).verdict == TC_ACT_SHOT


def test_without_a_table_every_name_is_refused(node: Node, names: Names) -> None:
    names.write({RULESET + 1: ["*"]})
    pod = Asker(node, names)
    assert pod.ask(question("api.example.com")).verdict == TC_ACT_REDIRECT


def test_plain_traffic_is_not_looked_into(node: Node, names: Names) -> None:
    pod = Asker(node, names)
    node.rule(pod.pod, Direction.EGRESS, 0, 17, 5353, rule_id=4)
    packet = from_pod(pod.pod, SERVER, udp(1, 5353, b"anything"))
    assert node.run("from_endpoint", packet, pod.pod.ifindex).verdict == TC_ACT_OK
