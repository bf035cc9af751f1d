"""Spans of our own calls, in a real receiver: a caller's trace goes on in the server, errors are told, probes not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common.config import BaseConfig
from services.common.errors import Invalid
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel
from services.common.tracing import server_interceptors, tracing
from services.relay.app import serving
from services.relay.config import Config
from tests.integration.relay.test_otlp import collector, decoded, free_address, named, received

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def config_of(endpoint: str, **more: Any) -> Config:
    return Config(insecure=True, listen=["127.0.0.1:0"], node_name="r1", trace_endpoint=endpoint, **more)


async def spans_of(output: Any, wanted: int) -> AsyncIterator[dict[str, Any]]:
    found = 0
    while found < wanted:
        for each in (await received(output, "resourceSpans"))["resourceSpans"]:
            assert named(each["resource"]["attributes"])["service.name"] == "ciliate-relay"
            for scope in each["scopeSpans"]:
                for span in scope["spans"]:
                    found += 1
                    yield span


async def test_calls_of_the_relay_are_spans_in_the_callers_trace() -> None:
    address, registry = free_address(), CollectorRegistry()
    config = config_of(f"http://{address}")
    async with collector(address) as output:
        async with tracing(config, "ciliate-relay", registry, "r1"), serving(config, registry) as server:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports[0]}") as plain:
                await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest())
                stub = observer_pb2_grpc.ObserverStub(plain)  # type: ignore[no-untyped-call]
                parent = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
                await stub.ServerStatus(observer_pb2.ServerStatusRequest(), metadata=parent)
                assert [each async for each in stub.GetFlows(observer_pb2.GetFlowsRequest(number=1))] == []
                request = observer_pb2.GetFlowsRequest(number=1, first=True, follow=True)
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    _ = [message async for message in stub.GetFlows(request)]
                assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            # Our own channels hand their trace on: client and server are two spans of one trace.
            async with channel(f"127.0.0.1:{server.ports[0]}", None, "relay") as ours:
                stub = observer_pb2_grpc.ObserverStub(ours)  # type: ignore[no-untyped-call]
                await stub.GetNodes(observer_pb2.GetNodesRequest())
        found = [span async for span in spans_of(output, 5)]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for span in found:
        by_name.setdefault(span["name"].lstrip("/"), []).append(span)
    (status,) = by_name["observer.Observer/ServerStatus"]
    assert (decoded(status["traceId"]), decoded(status["parentSpanId"])) == (TRACE, PARENT)
    assert status["kind"] == "SPAN_KIND_SERVER"
    assert named(status["attributes"])["rpc.method"].endswith("ServerStatus")
    good, bad = by_name["observer.Observer/GetFlows"]
    assert good.get("status", {}).get("code") != "STATUS_CODE_ERROR"
    assert named(bad["attributes"])["rpc.grpc.status_code"] == "3"
    kinds = {span["kind"]: span for span in by_name["observer.Observer/GetNodes"]}
    client, served = kinds["SPAN_KIND_CLIENT"], kinds["SPAN_KIND_SERVER"]
    assert served["traceId"] == client["traceId"]
    assert served["parentSpanId"] == client["spanId"]
    assert not any("Health" in name for name in by_name)
    assert registry.get_sample_value("ciliate_traces_spans_total", {"state": "offered"}) == 5
    assert registry.get_sample_value("ciliate_traces_spans_total", {"state": "sent"}) == 5


async def test_a_collector_that_is_away_costs_no_call() -> None:
    registry = CollectorRegistry()
    config = config_of(f"http://{free_address()}")
    async with tracing(config, "ciliate-relay", registry), serving(config, registry) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports[0]}") as plain:
            stub = observer_pb2_grpc.ObserverStub(plain)  # type: ignore[no-untyped-call]
            for _ in range(20):
                await stub.ServerStatus(observer_pb2.ServerStatusRequest(), timeout=2)
    assert registry.get_sample_value("ciliate_traces_spans_total", {"state": "offered"}) == 20
    assert registry.get_sample_value("ciliate_traces_spans_total", {"state": "sent"}) == 0


async def test_without_an_endpoint_nothing_is_traced() -> None:
    async with tracing(BaseConfig(insecure=True), "ciliate-relay", CollectorRegistry()):
        assert server_interceptors() == []


@pytest.mark.parametrize(
    ("endpoint", "authority", "message"),
    [
        ("collector:4317", "", "trace_endpoint: 'collector:4317' is not of the form"),
        ("http://collector", "", "trace_endpoint"),
        ("https://collector:4317", "/nowhere.pem", "trace_ca: cannot read /nowhere.pem"),
    ],
)
async def test_what_is_wrong_is_said(endpoint: str, authority: str, message: str) -> None:
    config = config_of(endpoint, trace_ca=authority)
    with pytest.raises(Invalid, match=message):
        async with tracing(config, "ciliate-relay", CollectorRegistry()):
            pass
