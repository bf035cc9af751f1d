"""A flow as an OpenTelemetry log event.

Attributes are those of the semantic conventions where there are any (network, source, destination, http, url, k8s); who
the two sides are has no convention yet and goes under `ciliate.`.
"""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.semconv._incubating.attributes import (
    destination_attributes,
    dns_attributes,
    k8s_attributes,
    source_attributes,
)
from opentelemetry.semconv.attributes import http_attributes, network_attributes, url_attributes

from services.common.pb.flow import flow_pb2

EVENT_NAME = "ciliate.flow"
_TYPES = {flow_pb2.IPv4: "ipv4", flow_pb2.IPv6: "ipv6"}
_REFUSED = (flow_pb2.DROPPED, flow_pb2.ERROR)

Value = str | int | list[str]


def record(flow: flow_pb2.Flow, observed_ns: int) -> LogRecord:
    """The event of a flow; refused ones are warnings."""
    refused = flow.verdict in _REFUSED
    return LogRecord(
        time_unix_nano=flow.time.ToNanoseconds(),
        observed_time_unix_nano=observed_ns,
        severity_number=SeverityNumber.SEVERITY_NUMBER_WARN if refused else SeverityNumber.SEVERITY_NUMBER_INFO,
        severity_text="WARN" if refused else "INFO",
        event_name=EVENT_NAME,
        body=AnyValue(string_value=flow.Summary),
        trace_id=bytes.fromhex(flow.trace_context.parent.trace_id),
        attributes=attributes(_values(flow)),
    )


def attributes(values: Iterable[tuple[str, Value]]) -> list[KeyValue]:
    """Named values on the wire; empty ones are left out."""
    return [KeyValue(key=key, value=_any(value)) for key, value in values if value not in ("", [])]


def _any(value: Value) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=each) for each in value]))


def _values(flow: flow_pb2.Flow) -> Iterable[tuple[str, Value]]:
    yield k8s_attributes.K8S_NODE_NAME, flow.node_name
    yield network_attributes.NETWORK_TYPE, _TYPES.get(flow.IP.ipVersion, "")
    protocol = flow.l4.WhichOneof("protocol") or ""
    yield network_attributes.NETWORK_TRANSPORT, protocol.lower()
    l4 = getattr(flow.l4, protocol) if protocol in ("TCP", "UDP", "SCTP") else None
    yield source_attributes.SOURCE_ADDRESS, flow.IP.source
    yield destination_attributes.DESTINATION_ADDRESS, flow.IP.destination
    if l4 is not None:
        yield source_attributes.SOURCE_PORT, l4.source_port
        yield destination_attributes.DESTINATION_PORT, l4.destination_port
    yield from _side("source", flow.source)
    yield from _side("destination", flow.destination)
    service = flow.destination_service
    yield "ciliate.service", f"{service.namespace}/{service.name}" if service.name else ""
    yield "ciliate.verdict", flow_pb2.Verdict.Name(flow.verdict)
    yield "ciliate.direction", flow_pb2.TrafficDirection.Name(flow.traffic_direction).lower()
    if flow.drop_reason_desc:
        yield "ciliate.drop_reason", flow_pb2.DropReason.Name(flow.drop_reason_desc)
    yield "ciliate.policies", sorted({_policy(each) for each in _policies(flow)})
    yield "ciliate.uuid", flow.uuid
    yield "ciliate.source.names", list(flow.source_names)
    yield "ciliate.destination.names", list(flow.destination_names)
    if flow.l7.HasField("dns"):
        yield dns_attributes.DNS_QUESTION_NAME, flow.l7.dns.query
        yield dns_attributes.DNS_ANSWERS, list(flow.l7.dns.ips)
    if flow.l7.HasField("http"):
        yield http_attributes.HTTP_REQUEST_METHOD, flow.l7.http.method
        yield url_attributes.URL_FULL, flow.l7.http.url
        if flow.l7.http.code:
            yield http_attributes.HTTP_RESPONSE_STATUS_CODE, flow.l7.http.code


def _side(name: str, endpoint: flow_pb2.Endpoint) -> Iterable[tuple[str, Value]]:
    yield f"ciliate.{name}.identity", endpoint.identity
    yield f"ciliate.{name}.namespace", endpoint.namespace
    yield f"ciliate.{name}.pod", endpoint.pod_name
    yield f"ciliate.{name}.workload", endpoint.workloads[0].name if endpoint.workloads else ""
    yield f"ciliate.{name}.labels", list(endpoint.labels)


def _policies(flow: flow_pb2.Flow) -> Iterable[flow_pb2.Policy]:
    yield from flow.ingress_allowed_by
    yield from flow.ingress_denied_by
    yield from flow.egress_allowed_by
    yield from flow.egress_denied_by


def _policy(policy: flow_pb2.Policy) -> str:
    name = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
    return f"{policy.kind} {name}"
