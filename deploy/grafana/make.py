"""Writes the dashboards beside this file: `python deploy/grafana/make.py`. Change them here, not in the JSON.

Every panel says what it shows, in which unit, and where to look next. Queries work with whatever labels
`sourceContext` and `destinationContext` add, because they sum them away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
REFUSED = "red"


@dataclass(frozen=True)
class Panel:
    """A title, what it means, queries with their legends; `width` of 24 columns."""

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    color: str = ""
    high: float | None = None
    """From here on it is red."""

    def build(self, number: int, x: int, y: int) -> dict[str, Any]:
        """As Grafana wants it."""
        instant = self.kind in ("table", "bargauge")
        targets = [
            {
                "datasource": SOURCE,
                "refId": chr(ord("A") + place),
                "expr": expression,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
                **({"format": "table"} if self.kind == "table" else {}),
            }
            for place, (expression, legend) in enumerate(self.queries)
        ]
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
            "targets": targets,
            **({"transformations": TABLE} if self.kind == "table" else {}),
        }

    def _defaults(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{"color": "green" if self.high is not None else "blue", "value": None}]
        if self.high is not None:
            steps.append({"color": REFUSED, "value": self.high})
        found: dict[str, Any] = {"unit": self.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
        if self.color:
            found["color"] = {"mode": "fixed", "fixedColor": self.color}
        elif self.kind == "stat":
            found["color"] = {"mode": "thresholds"}
        if self.kind == "timeseries":
            found["custom"] = {"lineWidth": 1, "fillOpacity": 12, "showPoints": "never", "spanNulls": True}
        return found

    def _options(self) -> dict[str, Any]:
        calculations = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        match self.kind:
            case "stat":
                return calculations | {"colorMode": "value", "graphMode": "area", "textMode": "auto"}
            case "bargauge":
                return calculations | {"displayMode": "basic", "orientation": "horizontal"}
            case "timeseries":
                legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
                return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
            case _:
                return {"showHeader": True}


TABLE = [{"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": {"Value": "per second"}}}]


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Per second, summed."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{where}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    """Of a histogram."""
    labels = ", ".join(["le", by]) if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


def latencies(metric: str) -> tuple[tuple[str, str], ...]:
    """p50, p95 and p99."""
    return tuple((quantile(share, metric), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99))


def stat(title: str, text: str, expression: str, unit: str = "short", high: float | None = None) -> Panel:
    """One figure."""
    return Panel(title, text, ((expression, ""),), unit, "stat", 4, 4, "", high)


FLOWS, DROPS = "hubble_flows_processed_total", "hubble_drop_total"
DECISIONS = "ciliate_policy_decisions_total"
HTTP = "hubble_http_request_duration_seconds"
DENIED = 'action="dropped"'
DNS_REFUSED = rate("hubble_policy_verdicts_total", where='match="l7/dns", action="dropped"') + " or vector(0)"

OVERVIEW = (
    stat("Flows", "Flows told by all nodes", rate(FLOWS), "cps"),
    stat("Drops", "Packets dropped, for whatever reason", rate(DROPS), "cps"),
    stat("HTTP requests", "Requests seen by the kernel", rate("hubble_http_requests_total"), "reqps"),
    stat("Agents connected", "Nodes that push their flows", "sum(ciliate_relay_agents_connected)"),
    stat("Lost events", "Events lost anywhere on the way in the last hour; every one is counted",
         "sum(increase(hubble_lost_events_total[1h])) or vector(0)", high=1),
    stat("Flows kept", "In the relay's memory", "sum(ciliate_relay_flows_held)"),
    Panel("Flows by verdict", "What became of traffic", ((rate(FLOWS, "verdict"), "{{verdict}}"),), "cps", width=12),
    Panel("Drops by reason", "Why packets were dropped. Next: the dashboard of drops by policy",
          ((rate(DROPS, "reason"), "{{reason}}"),), "cps", width=12),
    Panel("Flows by protocol", "Layer 4 and 7", ((rate(FLOWS, "protocol"), "{{protocol}}"),), "cps"),
    Panel("TCP openings and ends", "SYN of openings, FIN and RST of ends",
          ((rate("hubble_tcp_flags_total", "flag"), "{{flag}}"),), "cps"),
    Panel("Out of the cluster", "Connections to the world, by verdict",
          ((rate("hubble_flows_to_world_total", "verdict"), "{{verdict}}"),), "cps"),
    Panel("Busiest ports", "Connections per second by destination port",
          ((f"topk(10, {rate('hubble_port_distribution_total', 'port, protocol')})", "{{port}}/{{protocol}}"),),
          "cps", "bargauge", 12),
    Panel("Policy verdicts", "Decisions by direction and what matched",
          ((rate("hubble_policy_verdicts_total", "direction, match, action"), "{{direction}} {{match}} {{action}}"),),
          "cps", width=12),
)  # fmt: skip

DROPPED = (
    stat("Refused by policy", "Decisions against a packet or a request", rate(DECISIONS, where=DENIED), "cps"),
    stat("Refused share", "Of everything that policy decided",
         f"{rate(DECISIONS, where=DENIED)} / {rate(DECISIONS)}", "percentunit"),
    stat("Policies that refuse", "In the last five minutes",
         f"count(sum by (policy) (increase({DECISIONS}{{{DENIED}}}[5m])) > 0) or vector(0)"),
    stat("Dropped, no policy", "Drops for other reasons: routes, tables, malformed packets",
         f'sum(rate({DROPS}{{reason!~"POLICY_DEN.*"}}[$__rate_interval])) or vector(0)', "cps", 1),
    Panel("Refusals by policy", "Which policy refuses; default deny names the policy that isolates the endpoint",
          ((rate(DECISIONS, "policy", DENIED), "{{policy}}"),), "cps", width=12, height=9),
    Panel("Refusals by rule", "Which rule denies; `default deny` where none matched",
          ((rate(DECISIONS, "rule", DENIED), "{{rule}}"),), "cps", width=12, height=9),
    Panel("What refuses most", "Per policy, rule and direction. `ciliate observe --verdict DROPPED` shows the packets",
          ((f"topk(25, {rate(DECISIONS, 'policy, rule, direction', DENIED)})", ""),), "cps", "table", 16, 10),
    Panel("Drops by reason", "Of all packets", ((rate(DROPS, "reason"), "{{reason}}"),), "cps", width=8, height=10),
    Panel("Allowed by policy", "Which policy lets pass",
          ((rate(DECISIONS, "policy", 'action="forwarded"'), "{{policy}}"),), "cps", width=12),
    Panel("Drops by protocol", "Of all packets", ((rate(DROPS, "protocol"), "{{protocol}}"),), "cps", width=12),
)  # fmt: skip

WEB = (
    stat("Requests", "Seen at servers", rate("hubble_http_requests_total", where='reporter="server"'), "reqps"),
    stat("Errors", "Share of responses with 5xx",
         f'(sum(rate(hubble_http_responses_total{{status=~"5.."}}[$__rate_interval])) or vector(0)) /'
         f' {rate("hubble_http_responses_total")}', "percentunit", 0.05),
    stat("p50", "From request to response head", quantile(0.5, HTTP), "s"),
    stat("p99", "From request to response head", quantile(0.99, HTTP), "s", 1),
    stat("Refused by policy", "Requests answered 403 by the kernel",
         rate("hubble_policy_verdicts_total", where='match="l7/http", action="dropped"'), "reqps"),
    Panel("Requests by method", "Per second", ((rate("hubble_http_requests_total", "method"), "{{method}}"),),
          "reqps", width=12),
    Panel("Responses by status", "Per second", ((rate("hubble_http_responses_total", "status"), "{{status}}"),),
          "reqps", width=12),
    Panel("Latency", "From request to response head, measured in the kernel", latencies(HTTP), "s", width=12),
    Panel("p99 by method", "From request to response head", ((quantile(0.99, HTTP, "method"), "{{method}}"),), "s",
          width=12),
    Panel("Requests by protocol", "HTTP versions", ((rate("hubble_http_requests_total", "protocol"), "{{protocol}}"),),
          "reqps", width=12),
    Panel("Verdicts on requests", "What HTTP policy decided",
          ((rate("hubble_policy_verdicts_total", "action", 'match="l7/http"'), "{{action}}"),), "reqps", width=12),
)  # fmt: skip

NAMES = (
    stat("Questions", "DNS questions of pods", rate("hubble_dns_queries_total"), "reqps"),
    stat("Answers", "DNS answers to pods", rate("hubble_dns_responses_total"), "reqps"),
    stat("Failures", "Share of answers with an error",
         '(sum(rate(hubble_dns_responses_total{rcode!="No Error"}[$__rate_interval])) or vector(0)) /'
         f' {rate("hubble_dns_responses_total")}', "percentunit", 0.1),
    stat("Unanswered", "Questions without an answer",
         f"clamp_min({rate('hubble_dns_queries_total')} - {rate('hubble_dns_responses_total')}, 0)", "reqps"),
    stat("Refused", "Names that policy does not allow",
         DNS_REFUSED, "reqps"),
    Panel("Questions by type", "A, AAAA, SRV ...", ((rate("hubble_dns_queries_total", "qtypes"), "{{qtypes}}"),),
          "reqps", width=12),
    Panel("Answers by code", "Errors are worth a look", ((rate("hubble_dns_responses_total", "rcode"), "{{rcode}}"),),
          "reqps", width=12),
    Panel("Record types in answers", "Per second", ((rate("hubble_dns_response_types_total", "type"), "{{type}}"),),
          "reqps", width=12),
    Panel("Addresses per answer", "How many answers had how many",
          ((rate("hubble_dns_responses_total", "ips_returned"), "{{ips_returned}}"),), "reqps", width=12),
)  # fmt: skip

HEALTH = (
    stat("Agents ready", "Every endpoint enforced", "sum(ciliate_agent_ready)"),
    stat("Agents not ready", "Something waits: `ciliate status` says what",
         "count(ciliate_agent_ready == 0) or vector(0)",
         high=1),
    stat("etcd", "Identity replicas that reach it", "sum(ciliate_identity_etcd_connected)"),
    stat("Identities", "Given out", "max(ciliate_identity_identities)"),
    stat("Map pressure", "The fullest table of all nodes", "max(ciliate_map_pressure)", "percentunit", 0.9),
    stat("Refused map entries", "Entries that a kernel did not take yet", "sum(ciliate_map_entries_refused)", high=1),
    Panel("Policy to packet", "From the arrival of a changed policy to its being in force on a node",
          latencies("ciliate_policy_implementation_delay_seconds"), "s"),
    Panel("Identity changes", "Time to answer an allocation", latencies("ciliate_identity_change_seconds"), "s"),
    Panel("Identities given out", "Per second, new ones and known ones",
          ((rate("ciliate_identity_allocations_total", "kind"), "{{kind}}"),), "cps"),
    Panel("Map pressure", "Entries over room, per table: from 0.9 on make it larger",
          (("max by (map) (ciliate_map_pressure)", "{{map}}"),), "percentunit", high=0.9),
    Panel("Connections tracked", "Share of the connection table in use",
          (("max by (node, instance) (ciliate_conntrack_pressure)", "{{node}} {{instance}}"),),
          "percentunit", high=0.9),
    Panel("Connections thrown out", "For room, and refused for a pod's quota",
          ((rate("ciliate_conntrack_evicted_total"), "evicted"), (rate("ciliate_conntrack_refused_total"), "refused"))),
    Panel("Events", "Records read from kernel rings",
          ((rate("ciliate_events_read_total", "ring"), "{{ring}}"),), "cps"),
    Panel("Ring fill", "Share of a kernel ring that waits to be read",
          (("max by (ring) (ciliate_events_ring_fill_ratio)", "{{ring}}"),), "percentunit", high=0.5),
    Panel("Lost events", "By place; a loss is told in the flows as well",
          ((rate("ciliate_events_lost_total", "source"), "{{source}}"),), "cps", color=REFUSED),
    Panel("Way to the relay", "Waiting for its acknowledgement",
          (("sum by (node, instance) (ciliate_push_buffer_bytes)", "{{node}} {{instance}}"),),
          "bytes"),
    Panel("Relay", "Flows stored per second", ((rate("ciliate_relay_flows_stored_total", "node"), "{{node}}"),), "cps"),
    Panel("History", "On the relay's disk", (("sum(ciliate_relay_history_bytes)", "size"),), "bytes"),
    Panel("Updates waiting", "Before the calculation on a node",
          (("max by (node, instance) (ciliate_updates_waiting)", "{{node}} {{instance}}"),)),
    Panel("CNI calls", "Pods that come and go", ((rate("ciliate_cni_calls_total", "command, outcome"),
          "{{command}} {{outcome}}"),), "cps"),
    Panel("Complaints", "Objects that could not be read, Services with problems",
          (("sum by (source) (ciliate_source_problems)", "{{source}}"),
           ("sum by (kind) (ciliate_service_problems)", "{{kind}}"))),
    Panel("Folded series", "Metrics that reached their bound of series; further ones count under `other`",
          ((rate("ciliate_metrics_folded_total", "metric"), "{{metric}}"),), width=12),
    Panel("Watchers", "Agents that follow the identity service",
          (("sum(ciliate_identity_watchers)", "watchers"),), width=12),
)  # fmt: skip

DASHBOARDS = {
    "overview": ("Ciliate / Overview", OVERVIEW),
    "drops": ("Ciliate / Drops by policy", DROPPED),
    "http": ("Ciliate / HTTP", WEB),
    "dns": ("Ciliate / DNS", NAMES),
    "health": ("Ciliate / Identity and agent health", HEALTH),
}


def dashboard(name: str, title: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """Panels in rows, in the order in which they are given."""
    placed, x, y, row = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > WIDTH:
            x, y, row = 0, y + row, 0
        placed.append(panel.build(number, x, y))
        x, row = x + panel.width, max(row, panel.height)
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}
    links = [{"type": "dashboards", "tags": ["ciliate"], "asDropdown": True, "title": "Ciliate", "keepTime": True}]
    return {
        "uid": f"ciliate-{name}",
        "title": title,
        "tags": ["ciliate"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "links": links,
        "panels": placed,
    }


def documents() -> dict[str, str]:
    """File name -> content."""
    return {
        f"{name}.json": json.dumps(dashboard(name, title, panels), indent=1) + "\n"
        for name, (title, panels) in DASHBOARDS.items()
    }


if __name__ == "__main__":
    for name, content in documents().items():
        (HERE / name).write_text(content, encoding="utf-8")
