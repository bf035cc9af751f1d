"""The metric groups of the field, by name (the Hubble API's reference, section 6). `exporter` adds context labels."""

from __future__ import annotations

from dataclasses import replace

from services.flows.metrics import dns, http, traffic
from services.flows.metrics.family import Family

_QUERY = {"query": "query"}
_DURATIONS = Family(
    "hubble_http_request_duration_seconds",
    "From request to response head",
    ("method", "reporter"),
    http.durations,
    seconds=http.seconds,
)

GROUPS: dict[str, tuple[Family, ...]] = {
    "flow": (Family("hubble_flows_processed", "Flows", ("protocol", "type", "subtype", "verdict"), traffic.flows),),
    "drop": (Family("hubble_drop", "Dropped packets", ("reason", "protocol"), traffic.drops),),
    "tcp": (Family("hubble_tcp_flags", "TCP flags of openings and ends", ("flag", "family"), traffic.tcp_flags),),
    "port-distribution": (
        Family("hubble_port_distribution", "Connections by destination port", ("protocol", "port"), traffic.ports),
    ),
    "icmp": (Family("hubble_icmp", "ICMP messages that open an exchange", ("family", "type"), traffic.icmp),),
    "policy": (
        Family("hubble_policy_verdicts", "Decisions of policy", ("direction", "match", "action"), traffic.policy),
    ),
    "policy-decision": (
        Family(
            "ciliate_policy_decisions",
            "Decisions of policy, by policy and rule",
            ("policy", "rule", "direction", "action"),
            traffic.decisions,
        ),
    ),
    "http": (
        Family("hubble_http_requests", "HTTP requests", ("method", "protocol", "reporter"), http.requests),
        Family("hubble_http_responses", "HTTP responses", ("method", "protocol", "status", "reporter"), http.responses),
        _DURATIONS,
    ),
    "httpV2": (
        Family(
            "hubble_http_requests",
            "HTTP requests that were answered",
            ("method", "protocol", "status", "reporter"),
            http.responses,
            swapped=True,
        ),
        replace(_DURATIONS, swapped=True),
    ),
    "dns": (
        Family("hubble_dns_queries", "DNS questions", dns.LABELS, dns.queries, _QUERY),
        Family("hubble_dns_responses", "DNS answers", dns.LABELS, dns.responses, _QUERY),
        Family("hubble_dns_response_types", "Record types in DNS answers", ("type", "qtypes"), dns.types, _QUERY),
    ),
    "flows-to-world": (
        Family(
            "hubble_flows_to_world",
            "Connections out of the cluster",
            ("protocol", "verdict"),
            traffic.to_world,
            {"port": "port"},
        ),
    ),
}
