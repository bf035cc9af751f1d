"""Records of the name ring as flows: questions, answers, server names, and what connections are called afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.agent.abi.events import EVENT_VERSION, FLOW_EVENT, NAME_EVENT, EventFlags, EventType
from services.agent.events import decode
from services.agent.events.enrich import Enricher
from services.common.pb.flow import flow_pb2
from services.common.pb.ingest.v1 import ingest_pb2
from services.flows.entries import NameRecord, NodeRef
from services.flows.filters import build
from services.flows.filters.base import Rows
from services.flows.render import Renderer
from services.flows.store import FlowStore
from services.flows.wire import get_entry, put_entry
from services.model.verdict import DropReason
from tests.unit.agent.events.conftest import StubNames, raw

POD, SERVER, SITE = "10.0.0.1", "10.0.0.53", "203.0.113.9"


def record(kind: EventType, **fields: Any) -> np.ndarray[Any, np.dtype[Any]]:
    found = np.zeros(1, NAME_EVENT)
    found["type"], found["version"], found["protocol"], found["direction"] = kind, EVENT_VERSION, 17, 2
    found["saddr"], found["daddr"] = np.frombuffer(raw(POD), np.uint8), np.frombuffer(raw(SERVER), np.uint8)
    found["sport"], found["dport"], found["src_identity"], found["dst_identity"] = 40000, 53, 1001, 1002
    found["name"], found["name_len"], found["qtype"] = b"api.example.com.", 16, 1
    for name, value in fields.items():
        found[name] = value
    return found


def answer(**fields: Any) -> np.ndarray[Any, np.dtype[Any]]:
    found = record(EventType.DNS_ANSWER, ct_state=2, ttl=30, answers=1, latency_us=1500, **fields)
    found["addresses"][0, 0] = np.frombuffer(raw(SITE), np.uint8)
    return found


@pytest.fixture
def store() -> FlowStore:
    return FlowStore(1024)


def flows(store: FlowStore, records: Any, names: StubNames) -> list[Any]:
    enricher = Enricher(store.dictionaries, names, "default")
    columns = decode.names(records, enricher, lambda times: np.full(len(times), 1_700_000_000_000_000_000, np.int64))
    store.append(columns, store.node(NodeRef("n1")))
    rows = {name: values[: store.segments[-1].rows] for name, values in store.segments[-1].columns.items()}
    return [each.flow for each in Renderer(store.dictionaries, "1").responses(rows, np.zeros(len(records), np.intp))]


def test_a_question_and_its_answer(store: FlowStore, names: Any) -> None:
    asked, told = flows(store, np.concatenate([record(EventType.DNS_QUERY), answer()]), names)
    assert (asked.event_type.type, asked.l7.type, asked.l7.dns.query) == (129, flow_pb2.REQUEST, "api.example.com.")
    assert (asked.IP.source, asked.IP.destination) == (POD, SERVER)
    assert asked.Summary == "DNS Query api.example.com. A"
    assert (told.IP.source, told.IP.destination, told.is_reply.value) == (SERVER, POD, True)
    assert (told.l4.UDP.source_port, told.l4.UDP.destination_port) == (53, 40000)
    assert (list(told.l7.dns.ips), told.l7.dns.ttl, told.l7.latency_ns) == ([SITE], 30, 1_500_000)
    assert told.Summary == f'DNS Answer "{SITE}" TTL: 30 (Query api.example.com. A)'


def test_an_answer_says_which_names_it_leads_over(store: FlowStore, names: Any) -> None:
    text = b"www.cdn.test.\0e\x1b.test.\0"
    one = answer(aliases=text.ljust(256, b"x"), aliases_len=len(text))
    two = answer(aliases=b"other.test.\0".ljust(256, b"\0"), aliases_len=12)
    untouched = answer(aliases=b"y" * 256)  # the ring's memory, not an alias
    told = flows(store, np.concatenate([one, two, untouched, one]), names)
    assert [list(flow.l7.dns.cnames) for flow in told] == [
        ["www.cdn.test.", "e%1B.test."],
        ["other.test."],
        [],
        ["www.cdn.test.", "e%1B.test."],
    ]
    assert list(told[0].l7.dns.rrtypes) == ["A", "CNAME"]
    assert 'CNAMEs: "www.cdn.test.,e%1B.test."' in told[0].Summary
    leading = NameRecord("a.", 1, 0, 30, (SITE,), 1, ("b.", "c."))
    batch = ingest_pb2.Batch()
    put_entry(batch, 3, leading)
    assert get_entry(batch.entries[0]) == ("requests", 3, leading)


def test_a_refused_question_says_so(store: FlowStore, names: Any) -> None:
    denied = record(EventType.DNS_QUERY, drop_reason=DropReason.DNS_DENIED, rule_id=900)
    (flow,) = flows(store, denied, names)
    assert flow.verdict == flow_pb2.DROPPED
    assert "DNS name not allowed by" in flow.Summary
    (flow,) = flows(FlowStore(64), record(EventType.DNS_QUERY, drop_reason=230, flags=EventFlags.AUDIT), names)
    assert flow.verdict == flow_pb2.AUDIT


def test_an_error_has_its_text(store: FlowStore, names: Any) -> None:
    (flow,) = flows(store, record(EventType.DNS_ANSWER, ct_state=2, rcode=3), names)
    assert (flow.l7.dns.rcode, "Non-Existent Domain" in flow.Summary) == (3, True)


def test_a_server_name_is_a_destination_name(store: FlowStore, names: Any) -> None:
    hello = record(EventType.TLS_HELLO, protocol=6, dport=443)
    (flow,) = flows(store, hello, names)
    assert (list(flow.destination_names), flow.Summary) == (["api.example.com"], "TLS server name api.example.com")
    denied = record(EventType.TLS_HELLO, protocol=6, dport=443, drop_reason=DropReason.TLS_DENIED)
    (flow,) = flows(FlowStore(64), denied, names)
    assert (flow.event_type.type, flow.verdict) == (1, flow_pb2.DROPPED)


def test_connections_after_an_answer_have_the_name(store: FlowStore, names: Any) -> None:
    enricher = Enricher(store.dictionaries, names, "default")
    connection = np.zeros(1, FLOW_EVENT)
    connection["type"], connection["version"] = EventType.NEW, EVENT_VERSION
    connection["daddr"], connection["dst_identity"] = np.frombuffer(raw(SITE), np.uint8), 9

    def called() -> tuple[str, ...]:
        columns = decode.connections(connection, enricher, lambda times: times.astype(np.int64))
        party = store.dictionaries.parties[int(columns["destination"][0])]
        assert party is not None
        return party.names

    assert called() == ()
    names.dns[raw(SITE)] = ("api.example.com",)
    assert called() == ()  # nobody said that anything is new
    enricher.learn(answer())
    assert called() == ("api.example.com",)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (flow_pb2.FlowFilter(dns_query=["^api\\."]), [0, 1]),
        (flow_pb2.FlowFilter(dns_query=["other"]), []),
        (flow_pb2.FlowFilter(protocol=["dns"]), [0, 1]),
        (flow_pb2.FlowFilter(http_method=["GET"]), []),
    ],
)
def test_filters(store: FlowStore, names: Any, given: flow_pb2.FlowFilter, found: list[int]) -> None:
    flows(store, np.concatenate([record(EventType.DNS_QUERY), answer()]), names)
    segment = store.segments[-1]
    rows = Rows({name: values[: segment.rows] for name, values in segment.columns.items()}, store.dictionaries)
    assert np.flatnonzero(build(given)(rows)).tolist() == found


def test_messages_travel() -> None:
    batch = ingest_pb2.Batch()
    message = NameRecord("a.b.", 28, 3, 60, ("2001:db8::1",), 12)
    put_entry(batch, 7, message)
    assert get_entry(batch.entries[0]) == ("requests", 7, message)
