"""Flows as JSON for the page. What is in them is hostile input: it stays text, and the page shows it as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2 as pb
from services.flows.columns import Array, Columns, Kind
from services.flows.dictionary import Dictionaries
from services.flows.entries import Party
from services.flows.render import Renderer
from services.relay.web.explain import explain, reason_name
from services.relay.web.groups import By, namer

_KINDS = {int(kind): kind.name.lower().replace("_", "-") for kind in Kind}


class FlowWriter:
    """Writes rows, one dictionary each."""

    def __init__(self, dictionaries: Dictionaries, version: str, by: By) -> None:
        self._dictionaries, self._group = dictionaries, namer(by)
        self._renderer = Renderer(dictionaries, version, details=True)

    def write(self, columns: Columns, facets: Array) -> Iterator[dict[str, Any]]:
        """Rows in order; none of them may tell of losses."""
        names = ("kind", "verdict", "drop_reason", "direction", "policy", "source", "destination")
        rows = zip(*(columns[name].tolist() for name in names), strict=True)
        for response, row in zip(self._renderer.responses(columns, facets), rows, strict=True):
            kind, verdict, reason, direction, policy, source, destination = row
            flow = response.flow
            found = _flow(flow) | {
                "kind": _KINDS.get(kind, str(kind)),
                "source": self._side(flow.source, flow.IP.source, flow.source_names, source),
                "destination": self._side(flow.destination, flow.IP.destination, flow.destination_names, destination),
                "explanation": explain(kind, verdict, reason, direction, self._dictionaries.decisions[policy]),
            }
            if verdict == pb.DROPPED:
                found["reason"] = reason_name(reason)
            yield found

    def _side(self, endpoint: pb.Endpoint, address: str, names: Any, number: int) -> dict[str, Any]:
        workload = endpoint.workloads[0] if endpoint.workloads else None
        return {
            "group": self._group(self._dictionaries.parties[number] or Party(bytes(16))),
            "namespace": endpoint.namespace,
            "pod": endpoint.pod_name,
            "workload": f"{workload.kind}/{workload.name}" if workload else "",
            "identity": endpoint.identity,
            "labels": list(endpoint.labels),
            "address": address,
            "names": list(names),
        }


def _flow(flow: pb.Flow) -> dict[str, Any]:
    layer4 = flow.l4.WhichOneof("protocol") or ""
    ports = getattr(flow.l4, layer4) if layer4 in ("TCP", "UDP", "SCTP") else None
    return {
        "id": flow.uuid,
        "time": flow.time.ToNanoseconds() / 1e9,
        "node": flow.node_name,
        "verdict": pb.Verdict.Name(flow.verdict),
        "direction": pb.TrafficDirection.Name(flow.traffic_direction).lower(),
        "reply": flow.is_reply.value,
        "protocol": layer4,
        "source_port": ports.source_port if ports else None,
        "destination_port": ports.destination_port if ports else None,
        "service": f"{flow.destination_service.namespace}/{flow.destination_service.name}".strip("/"),
        "summary": flow.Summary,
        "http": _http(flow),
        "trace": flow.trace_context.parent.trace_id or None,
        "dns": _dns(flow),
        "traffic": _traffic(flow),
    }


def _http(flow: pb.Flow) -> dict[str, Any] | None:
    if not flow.l7.HasField("http"):
        return None
    found = flow.l7.http
    latency = flow.l7.latency_ns / 1e6 if found.code else None
    return {"method": found.method, "url": found.url, "code": found.code or None, "latency_ms": latency}


def _dns(flow: pb.Flow) -> dict[str, Any] | None:
    if not flow.l7.HasField("dns"):
        return None
    return {"query": flow.l7.dns.query, "rcode": flow.l7.dns.rcode, "addresses": list(flow.l7.dns.ips)}


def _traffic(flow: pb.Flow) -> dict[str, Any] | None:
    details = details_pb2.FlowDetails()
    if not flow.extensions.Unpack(details) or not details.packets + details.reply_packets:
        return None
    return {
        "packets": details.packets,
        "reply_packets": details.reply_packets,
        "bytes": details.bytes,
        "reply_bytes": details.reply_bytes,
        "rtt_ms": details.rtt_us / 1000 or None,
        "duration_ms": details.duration_us / 1000,
        "retransmits": details.retransmits,
    }
