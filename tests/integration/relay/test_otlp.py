"""Flows and figures in a collector: a receiver in a process of its own, which comes late, refuses or goes away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram

from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2
from services.flows.columns import STORED, Columns, Kind
from services.flows.entries import Decision, HttpRequest, NodeRef, Party, PolicyRef
from services.flows.store import FlowStore
from services.model.addresses import to_bytes
from services.relay.export import lane, spans, target
from services.relay.export.otlp import Exporter
from services.relay.export.wanted import Wanted


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.asynccontextmanager
async def collector(address: str, *refuse: str) -> AsyncIterator[asyncio.StreamReader]:
    """The receiver's output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.relay.collector", address, *refuse, stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert json.loads(await process.stdout.readline()) == {"ready": True}
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


class Relay:
    """A store with an exporter beside it."""

    def __init__(self, address: str, wanted: Wanted = Wanted.DROPS, traces: float = 0) -> None:
        self.store = FlowStore(4096)
        self.registry = CollectorRegistry()
        to = target.parse(f"http://{address}", ["X-Tenant=blue"], "")
        resource = {"service.name": "ciliate-relay", "service.version": "1.0"}
        self.exporter = Exporter(to, wanted, 0.2, self.store.dictionaries, self.registry, resource, traces=traces)
        self.node = self.store.node(NodeRef("node1"))

    def rows(self, count: int, **fields: Any) -> None:
        """Equal rows; told to the exporter as the ingest does."""
        names = self.store.dictionaries
        client = Party(to_bytes(ipaddress.ip_address("10.0.0.1")), 1001, ("k8s:app=a",), "default", "client")
        decision = Decision(False, (PolicyRef("CiliumNetworkPolicy", "default", "no"),))
        values: dict[str, Any] = {
            "time_ns": 1_700_000_000_000_000_000,
            "source": names.parties.intern(client),
            "destination": names.parties.intern(Party(to_bytes(ipaddress.ip_address("10.0.0.2")), 1002)),
            "policy": names.decisions.intern(decision),
            "source_port": 40_000,
            "destination_port": 80,
            "kind": Kind.DROP,
            "verdict": flow_pb2.DROPPED,
            "drop_reason": 133,
            "direction": flow_pb2.INGRESS,
            "protocol": 6,
        } | fields
        columns: Columns = {name: np.full(count, value, STORED[name]) for name, value in values.items()}
        self.store.append(columns, self.node)
        self.exporter.offer(columns, self.node)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.exporter.run())
        try:
            async with asyncio.timeout(60):
                yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition: Callable[[lane.Figures], bool]) -> lane.Figures:
        while not condition(self.exporter.figures):  # noqa: ASYNC110 - the condition is another process's doing
            await asyncio.sleep(0.01)
        return self.exporter.figures


def decoded(text: str) -> str:
    """Bytes in a message's JSON, as hexadecimal digits."""
    return base64.b64decode(text).hex()


async def received(output: asyncio.StreamReader, key: str) -> dict[str, Any]:
    """The next message of a kind."""
    while True:
        message: dict[str, Any] = json.loads(await output.readline())
        if key in message:
            return message


def named(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    def value(found: dict[str, Any]) -> Any:
        if "arrayValue" in found:
            return [value(each) for each in found["arrayValue"]["values"]]
        return next(iter(found.values()))

    return {each["key"]: value(each["value"]) for each in attributes}


async def test_a_drop_arrives_as_an_event_that_says_who_and_why() -> None:
    address = free_address()
    relay = Relay(address)
    async with collector(address) as output, relay.running():
        relay.rows(3)
        relay.rows(5, kind=Kind.NEW, verdict=flow_pb2.FORWARDED)  # not asked for
        message = await received(output, "resourceLogs")
        assert message["metadata"]["x-tenant"] == "blue"
        resource = named(message["resourceLogs"][0]["resource"]["attributes"])
        assert resource == {"service.name": "ciliate-relay", "service.version": "1.0"}
        records = message["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
        assert len(records) == 3
        assert (records[0]["eventName"], records[0]["severityText"]) == ("ciliate.flow", "WARN")
        assert records[0]["timeUnixNano"] == "1700000000000000000"
        attributes = named(records[0]["attributes"])
        expected = {
            "network.transport": "tcp",
            "network.type": "ipv4",
            "source.address": "10.0.0.1",
            "source.port": "40000",
            "destination.port": "80",
            "k8s.node.name": "node1",
            "ciliate.source.pod": "client",
            "ciliate.source.labels": ["k8s:app=a"],
            "ciliate.verdict": "DROPPED",
            "ciliate.drop_reason": "POLICY_DENIED",
            "ciliate.policies": ["CiliumNetworkPolicy default/no"],
        }
        assert expected.items() <= attributes.items()
        await relay.until(lambda figures: figures.sent == 3)
        assert relay.exporter.figures.offered == 3


async def test_requests_carry_the_conventions_names() -> None:
    address = free_address()
    relay = Relay(address, Wanted.ALL)
    async with collector(address) as output, relay.running():
        request = relay.store.dictionaries.requests.intern(HttpRequest("GET", "/api", 11, 4))
        relay.rows(1, kind=Kind.HTTP, verdict=flow_pb2.FORWARDED, http=request, drop_reason=0)
        message = await received(output, "resourceLogs")
        record = message["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
        attributes = named(record["attributes"])
        assert record["severityText"] == "INFO"
        assert (attributes["http.request.method"], attributes["url.full"]) == ("GET", "http://10.0.0.2/api")


async def test_answered_requests_are_spans_of_the_workload_that_served_them() -> None:
    address = free_address()
    relay = Relay(address, Wanted.NONE, traces=1)
    names = relay.store.dictionaries
    server = Party(to_bytes(ipaddress.ip_address("10.0.0.2")), 1002, (), "shop", "cart-1", "Deployment", "cart")
    client = Party(to_bytes(ipaddress.ip_address("10.0.0.1")), 1001, (), "shop", "front-1", "Deployment", "front")
    ends = {"source": names.parties.intern(server), "destination": names.parties.intern(client)}
    ports = {"source_port": 80, "destination_port": 40_000}
    common = {"kind": Kind.HTTP, "http": names.requests.intern(HttpRequest("GET", "/api?q=1", 11, 8)), "drop_reason": 0}
    passed = {"verdict": flow_pb2.FORWARDED, "ct_state": 2, "duration_us": 2500, "policy": 0}
    async with collector(address) as output, relay.running():
        relay.rows(1, **common, verdict=flow_pb2.FORWARDED)  # the question is told by its answer
        relay.rows(1, **common, **ends, **ports, **passed, status=200)
        relay.rows(1, **common, **ends, **ports, **passed, status=503, time_ns=1_700_000_001_000_000_000)
        found = [(await received(output, "resourceSpans"))["resourceSpans"][0] for _ in range(2)]
        resource = named(found[0]["resource"]["attributes"])
        assert resource.items() >= {"service.name": "cart", "k8s.deployment.name": "cart"}.items()
        (span,) = found[0]["scopeSpans"][0]["spans"]
        assert (span["name"], span["kind"], "status" in span) == ("GET", "SPAN_KIND_SERVER", False)
        assert int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) == 2_500_000
        expected = {
            "http.request.method": "GET",
            "url.path": "/api",
            "url.query": "q=1",
            "http.response.status_code": "200",
            "network.protocol.version": "1.1",
            "client.address": "10.0.0.1",
            "server.address": "10.0.0.2",
            "server.port": "80",
            "ciliate.client.workload": "front",
        }
        attributes = named(span["attributes"])
        assert expected.items() <= attributes.items()
        assert "error.type" not in attributes
        (broken,) = found[1]["scopeSpans"][0]["spans"]
        assert broken["status"]["code"] == "STATUS_CODE_ERROR"
        assert named(broken["attributes"])["error.type"] == "503"
        assert broken["traceId"] != span["traceId"]
        assert relay.exporter.span_figures.offered == 2


TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"trace_high": int(TRACE_ID[:16], 16), "trace_low": int(TRACE_ID[16:], 16), "parent_span": int(PARENT_ID, 16)}


async def test_requests_join_the_trace_that_they_name() -> None:
    """Both ends and a refusal are siblings below the caller's span; what its sender does not record is left out."""
    address = free_address()
    relay = Relay(address, Wanted.DROPS, traces=0.0001)
    request = relay.store.dictionaries.requests.intern(HttpRequest("GET", "/api", 11, 4))
    common = TRACED | {
        "kind": Kind.HTTP,
        "http": request,
        "verdict": flow_pb2.FORWARDED,
        "ct_state": 2,
        "drop_reason": 0,
    }
    async with collector(address) as output, relay.running():
        relay.rows(1, **common, trace_flags=0)
        relay.rows(1, **common, trace_flags=1)
        relay.rows(1, **common, trace_flags=0x83, direction=flow_pb2.EGRESS)
        relay.rows(
            1, **TRACED, kind=Kind.HTTP, http=request, drop_reason=220, trace_flags=1, time_ns=1_700_000_000_000_000_001
        )
        relay.rows(1, kind=Kind.HTTP, http=request, drop_reason=220)  # of no trace: not in the share
        found, logs = [], []
        while len(found) < 3 or len(logs) < 2:
            message = json.loads(await output.readline())
            found += [
                span
                for each in message.get("resourceSpans", [])
                for scope in each["scopeSpans"]
                for span in scope["spans"]
            ]
            logs += [
                record
                for each in message.get("resourceLogs", [])
                for scope in each["scopeLogs"]
                for record in scope["logRecords"]
            ]
    assert {decoded(span["traceId"]) for span in found} == {TRACE_ID}
    assert {decoded(span["parentSpanId"]) for span in found} == {PARENT_ID}
    assert sorted(span["flags"] for span in found) == [0x301, 0x301, 0x383]
    assert sorted(span["kind"] for span in found) == ["SPAN_KIND_CLIENT", "SPAN_KIND_SERVER", "SPAN_KIND_SERVER"]
    assert len({span["spanId"] for span in found}) == 3
    assert [decoded(record.get("traceId", "")) for record in logs] == [TRACE_ID, ""]
    assert relay.exporter.span_figures.offered == 3


async def test_a_refused_request_is_a_span_that_failed() -> None:
    address = free_address()
    relay = Relay(address, Wanted.NONE, traces=1)
    request = relay.store.dictionaries.requests.intern(HttpRequest("BREW", "/pot", 11, 4))
    async with collector(address) as output, relay.running():
        relay.rows(1, kind=Kind.HTTP, http=request, drop_reason=220)
        (span,) = (await received(output, "resourceSpans"))["resourceSpans"][0]["scopeSpans"][0]["spans"]
        attributes = named(span["attributes"])
        assert (span["name"], attributes["http.request.method"], attributes["http.request.method_original"]) == (
            "HTTP", "_OTHER", "BREW",
        )  # fmt: skip
        assert (attributes["error.type"], attributes["http.response.status_code"]) == ("policy_denied", "403")
        assert attributes["ciliate.policies"] == ["no"]
        assert "CiliumNetworkPolicy default/no" in span["status"]["message"]


async def test_spans_wait_and_are_dropped_and_counted_like_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "QUEUE_ROWS", 100)
    monkeypatch.setattr(lane, "PAUSE_S", 0.05)
    address = free_address()
    relay = Relay(address, Wanted.NONE, traces=1)
    request = relay.store.dictionaries.requests.intern(HttpRequest("GET", "/", 11, 1))
    async with relay.running():
        for _ in range(3):
            relay.rows(60, kind=Kind.HTTP, http=request, drop_reason=220)
        async with collector(address) as output:
            seen = 0
            while seen < 100:
                whole = (await received(output, "resourceSpans"))["resourceSpans"]
                seen += sum(len(scope["spans"]) for each in whole for scope in each["scopeSpans"])
            figures = relay.exporter.span_figures
            while figures.sent < 100:  # noqa: ASYNC110 - the answer comes in another task
                await asyncio.sleep(0.01)
    assert (figures.offered, figures.sent, figures.dropped) == (180, 100, 80)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_a_share_of_requests_is_traced(share: float) -> None:
    rows = 20_000
    columns = {name: np.zeros(rows, kind) for name, kind in STORED.items()}
    columns["kind"][:] = Kind.HTTP
    columns["ct_state"][:] = 2
    columns["time_ns"][:] = 1_700_000_000_000_000_000 + np.arange(rows) * 1_234_567
    assert len(spans.wanted(columns, share)) == pytest.approx(share * rows, abs=rows * 0.02)


async def test_every_figure_of_the_registry_arrives() -> None:
    address = free_address()
    relay = Relay(address)
    seconds = Histogram("work_seconds", "Work", ["kind"], registry=relay.registry, buckets=(0.1, 1))
    for value in (0.05, 0.5, 0.5, 7):
        seconds.labels("a").observe(value)
    async with collector(address) as output, relay.running():
        message = await received(output, "resourceMetrics")
        found = {each["name"]: each for each in message["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
        point = found["work_seconds"]["histogram"]["dataPoints"][0]
        assert point["bucketCounts"] == ["1", "2", "1"]
        assert (point["count"], point["sum"], point["explicitBounds"]) == ("4", 8.05, [0.1, 1.0])
        counter = found["ciliate_otlp_flows_total"]["sum"]
        assert counter["isMonotonic"]
        assert counter["aggregationTemporality"] == "AGGREGATION_TEMPORALITY_CUMULATIVE"


async def test_a_collector_that_is_away_gets_what_waited_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "QUEUE_ROWS", 100)
    monkeypatch.setattr(lane, "PAUSE_S", 0.05)
    address = free_address()
    relay = Relay(address)
    async with relay.running():
        for _ in range(3):
            relay.rows(60)
        assert relay.exporter.figures.dropped == 80
        async with collector(address):
            figures = await relay.until(lambda figures: figures.sent == 100)
        assert figures.offered == figures.sent + figures.dropped
        relay.rows(1)  # there is room again
    assert relay.exporter.figures.dropped == 80


@pytest.mark.parametrize(
    ("refusal", "sent", "rejected", "failed"),
    [("UNAVAILABLE", 4, 0, 0), ("PARTLY", 3, 1, 0), ("INVALID_ARGUMENT", 0, 0, 4)],
)
async def test_refusals(refusal: str, sent: int, rejected: int, failed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "PAUSE_S", 0.05)
    address = free_address()
    relay = Relay(address)
    async with collector(address, refusal, "1"), relay.running():
        relay.rows(4)
        figures = await relay.until(lambda figures: figures.sent + figures.rejected + figures.failed == 4)
        assert (figures.sent, figures.rejected, figures.failed) == (sent, rejected, failed)


async def test_what_was_sent_is_forgotten() -> None:
    address = free_address()
    relay = Relay(address)
    async with collector(address), relay.running():
        relay.rows(4)
        await relay.until(lambda figures: figures.sent == 4)
        relay.store.segments.pop().uses.release()
        while len(relay.store.dictionaries.parties):  # noqa: ASYNC110 - after the answer, in another task
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("endpoint", "headers", "message"),
    [
        ("collector:4317", [], "must begin with http"),
        ("http://collector", [], "not of the form https://host:port"),
        ("http://collector:4317/v1/logs", [], "not of the form https://host:port"),
        ("http://collector:99999", [], "not of the form https://host:port"),
        ("http://collector:4317", ["token"], "'token' is not of the form name=value"),
        ("http://collector:4317", ["a b=c"], "not of the form name=value"),
        ("http://collector:4317", ["a=b\nc"], "characters that no header may have"),
    ],
)
def test_what_is_wrong_with_a_target_is_said(endpoint: str, headers: list[str], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        target.parse(endpoint, headers, "")
    with pytest.raises(Invalid, match="otlp_ca"):
        target.parse("https://collector:4317", [], "/nowhere/ca.pem")
