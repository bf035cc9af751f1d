"""HTTP requests as OpenTelemetry spans, by the semantic conventions for HTTP and Kubernetes.

One span per request and end that saw it: `SERVER` where it arrives, `CLIENT` where it leaves. It belongs to the
workload at that end (its resource) and lasts from the request to the head of the response. A request that policy
refused is one with 403.

A request with a `traceparent` (W3C Trace Context) is a span of that trace, below the span that it was sent in; one
without begins a trace, whose id is the flow's uuid. Where both ends saw a request their spans lie side by side: each
knows the parent from the header, and neither knows whether the other end was seen. `tracestate` is not carried.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import urlsplit

import numpy as np
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status
from opentelemetry.semconv._incubating.attributes import k8s_attributes
from opentelemetry.semconv.attributes import (
    client_attributes,
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    service_attributes,
    url_attributes,
)
from opentelemetry.semconv.schemas import Schemas

from services.common.pb.flow import flow_pb2
from services.flows.columns import TRACE, Array, Columns, Kind, length, zeros
from services.flows.facets import DROPPED, responses
from services.relay.export.logs import Value, attributes

SCHEMA = Schemas.V1_44_0.value
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "QUERY"})
OTHER = "_OTHER"
REFUSED_STATUS, CLIENT_ERROR, SERVER_ERROR = 403, 400, 500
REFUSED = "policy_denied"
_KINDS = {"Deployment": "deployment", "StatefulSet": "statefulset", "DaemonSet": "daemonset", "Job": "job"}
_SHARES = 1 << 16
SAMPLED = 1
"""The flag of a traceparent that says that its sender records the trace."""


def wanted(columns: Columns, share: float) -> Array:
    """Indices of answered and of refused requests, as OpenTelemetry's parent-based samplers decide.

    Those that belong to a trace: where their sender records it (its flag "sampled"). `share` of the others, by time
    alone.
    """
    if share <= 0:
        return np.zeros(0, np.intp)
    needed = ("kind", "ct_state", "verdict", *TRACE)
    told = {name: columns.get(name, zeros(name, length(columns))) for name in needed}
    found = (told["kind"] == Kind.HTTP) & (responses(told) | (told["verdict"] == DROPPED))
    if share < 1:
        # A flow's microseconds are as good as random, and the same on every relay.
        mixed = (columns["time_ns"].astype(np.uint64) // np.uint64(1000)) * np.uint64(0x9E3779B97F4A7C15)
        picked = (mixed >> np.uint64(48)) < np.uint64(int(share * _SHARES))
    else:
        picked = np.ones(length(columns), np.bool_)
    traced = (told["trace_high"] != 0) | (told["trace_low"] != 0)
    return np.flatnonzero(found & np.where(traced, (told["trace_flags"] & SAMPLED) != 0, picked))


def gather(flows: Sequence[flow_pb2.Flow], columns: Columns, scope: InstrumentationScope) -> list[ResourceSpans]:
    """Spans by the workload that they belong to. `columns`: the rows that the flows were rendered from."""
    groups: dict[tuple[tuple[str, Value], ...], list[Span]] = {}
    parents = zip(columns["parent_span"].tolist(), columns["trace_flags"].tolist(), strict=True)
    for flow, (parent, flags) in zip(flows, parents, strict=True):
        span = _span(flow)
        if flow.HasField("trace_context"):
            _join(span, flow.trace_context.parent.trace_id, parent, flags)
        groups.setdefault(_resource(flow), []).append(span)
    return [
        ResourceSpans(
            resource=Resource(attributes=attributes(names)),
            scope_spans=[ScopeSpans(scope=scope, spans=found, schema_url=SCHEMA)],
            schema_url=SCHEMA,
        )
        for names, found in groups.items()
    ]


def _ends(flow: flow_pb2.Flow) -> tuple[tuple[flow_pb2.Endpoint, str, int], tuple[flow_pb2.Endpoint, str, int]]:
    """(client, server), each with address and port: an answer is told from its server's side."""
    source = (flow.source, flow.IP.source, flow.l4.TCP.source_port)
    destination = (flow.destination, flow.IP.destination, flow.l4.TCP.destination_port)
    return (destination, source) if flow.is_reply.value else (source, destination)


def _resource(flow: flow_pb2.Flow) -> tuple[tuple[str, Value], ...]:
    client, server = _ends(flow)
    end, address, _ = server if flow.traffic_direction == flow_pb2.INGRESS else client
    workload = end.workloads[0] if end.workloads else None
    found: list[tuple[str, Value]] = [
        (service_attributes.SERVICE_NAME, workload.name if workload else end.pod_name or address),
        (k8s_attributes.K8S_NAMESPACE_NAME, end.namespace),
        (k8s_attributes.K8S_POD_NAME, end.pod_name),
        (k8s_attributes.K8S_NODE_NAME, flow.node_name),
    ]
    if workload and workload.kind in _KINDS:
        found.append((f"k8s.{_KINDS[workload.kind]}.name", workload.name))
    return tuple(found)


def _span(flow: flow_pb2.Flow) -> Span:
    serving = flow.traffic_direction == flow_pb2.INGRESS
    refused = flow.verdict == flow_pb2.DROPPED
    code = REFUSED_STATUS if refused else flow.l7.http.code
    failed = refused or code >= (SERVER_ERROR if serving else CLIENT_ERROR)
    error = REFUSED if refused else str(code) if failed else ""
    end_ns = flow.time.ToNanoseconds()
    method = flow.l7.http.method
    trace = uuid.UUID(flow.uuid).bytes
    return Span(
        trace_id=trace,
        span_id=hashlib.blake2b(trace, digest_size=8).digest(),
        name=method if method in METHODS else "HTTP",
        kind=Span.SPAN_KIND_SERVER if serving else Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=end_ns - (0 if refused else flow.l7.latency_ns),
        end_time_unix_nano=end_ns,
        attributes=attributes(_values(flow, code, error)),
        status=Status(code=Status.STATUS_CODE_ERROR, message=flow.Summary if refused else "") if failed else None,
    )


def _join(span: Span, trace_id: str, parent: int, flags: int) -> None:
    """Below the span that a request was sent in."""
    span.trace_id = bytes.fromhex(trace_id)
    span.parent_span_id = parent.to_bytes(8, "big")
    span.flags = flags | SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


def _values(flow: flow_pb2.Flow, code: int, error: str) -> Iterator[tuple[str, Value]]:
    (client, client_address, client_port), (_, server_address, server_port) = _ends(flow)
    method, url = flow.l7.http.method, _split(flow.l7.http.url)
    yield http_attributes.HTTP_REQUEST_METHOD, method if method in METHODS else OTHER
    if method not in METHODS:
        yield http_attributes.HTTP_REQUEST_METHOD_ORIGINAL, method
    yield url_attributes.URL_SCHEME, "http"
    yield url_attributes.URL_PATH, url[0]
    yield url_attributes.URL_QUERY, url[1]
    if code:
        yield http_attributes.HTTP_RESPONSE_STATUS_CODE, code
    yield error_attributes.ERROR_TYPE, error
    yield network_attributes.NETWORK_PROTOCOL_NAME, "http"
    yield network_attributes.NETWORK_PROTOCOL_VERSION, flow.l7.http.protocol.removeprefix("HTTP").lstrip("/")
    yield client_attributes.CLIENT_ADDRESS, client_address
    yield client_attributes.CLIENT_PORT, client_port
    yield server_attributes.SERVER_ADDRESS, server_address
    yield server_attributes.SERVER_PORT, server_port
    yield "ciliate.client.workload", client.workloads[0].name if client.workloads else client.pod_name
    yield "ciliate.verdict", flow_pb2.Verdict.Name(flow.verdict)
    yield "ciliate.policies", sorted({policy.name for policy in _policies(flow)})
    yield "ciliate.flow.uuid", flow.uuid


def _policies(flow: flow_pb2.Flow) -> Iterable[flow_pb2.Policy]:
    for field in ("ingress_allowed_by", "ingress_denied_by", "egress_allowed_by", "egress_denied_by"):
        yield from getattr(flow, field)


def _split(url: str) -> tuple[str, str]:
    """(path, query) of a URL whose path is hostile input."""
    try:
        found = urlsplit(url)
    except ValueError:
        return "", ""
    return found.path, found.query
