"""Flows as metrics: the field's names, labels and options, and no more series than were allowed."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2 as pb
from services.flows.columns import Kind
from services.flows.entries import Decision, NameRecord, PolicyRef
from services.flows.facets import REPLY
from services.flows.metrics.config import ALL, parse
from services.flows.metrics.exporter import FlowMetrics
from services.model.identity import Reserved

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(flows: Any, *groups: str, limit: int = 1000) -> Samples:
    """Everything that a scrape shows after all rows of the store were counted."""
    registry = CollectorRegistry()
    metrics = FlowMetrics(registry, parse(groups), limit)
    for segment in flows.store.segments:
        metrics.observe(segment.view(segment.rows), flows.store.dictionaries)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0)


def test_a_packet_that_policy_saw_is_two_flows_and_one_drop(flows: Any) -> None:
    flows.drop()
    flows.drop()
    flows.allow()
    found = scraped(flows, "flow", "drop", "policy")
    name = "hubble_flows_processed_total"
    assert value(found, name, protocol="TCP", type="Drop", subtype="", verdict="DROPPED") == 2
    assert value(found, name, protocol="TCP", type="PolicyVerdict", subtype="", verdict="DROPPED") == 2
    assert value(found, name, protocol="TCP", type="PolicyVerdict", subtype="", verdict="FORWARDED") == 1
    assert value(found, name, protocol="TCP", type="Trace", subtype="to-endpoint", verdict="FORWARDED") == 1
    assert value(found, "hubble_drop_total", reason="POLICY_DENIED", protocol="TCP") == 2
    verdicts = "hubble_policy_verdicts_total"
    assert value(found, verdicts, direction="ingress", match="none", action="dropped") == 2
    assert value(found, verdicts, direction="ingress", match="l3-l4", action="forwarded") == 1


def test_decisions_are_counted_by_policy_and_rule(flows: Any) -> None:
    policy = PolicyRef("CiliumNetworkPolicy", "default", "a")
    for _ in range(3):
        flows.drop(policy=Decision(False, (policy,)))
    flows.drop(policy=Decision(True, (PolicyRef("CiliumNetworkPolicy", "default", "b", rule="spec.ingressDeny[0]"),)))
    flows.allow()
    flows.drop(drop_reason=169, policy=Decision(False, ()))  # the datapath's own reasons are nobody's decision
    found = scraped(flows, "policy-decision")
    name = "ciliate_policy_decisions_total"
    assert value(found, name, policy=str(policy), rule="default deny", direction="ingress", action="dropped") == 3
    denied = {"policy": "CiliumNetworkPolicy default/b", "rule": "spec.ingressDeny[0]"}
    assert value(found, name, **denied, direction="ingress", action="dropped") == 1
    assert sum(amount for (each, _), amount in found.items() if each == name) == 5


def test_openings_and_ends(flows: Any) -> None:
    flows.add(tcp_flags=2)
    flows.add(tcp_flags=2, destination=flows.party("fd00::2", 1003, pod="six"), source=flows.party("fd00::1", 1004))
    flows.add(kind=Kind.CLOSE, tcp_flags=0x1F)
    flows.add(protocol=17, destination_port=53, tcp_flags=0)
    flows.add(protocol=1, source_port=8, destination_port=0, tcp_flags=0)
    flows.add(kind=Kind.UPDATE, tcp_flags=0x12)
    found = scraped(flows, "tcp", "port-distribution", "icmp")
    flags = "hubble_tcp_flags_total"
    assert [value(found, flags, flag=f, family="IPv4") for f in ("SYN", "FIN", "RST")] == [1, 1, 1]
    assert value(found, flags, flag="SYN", family="IPv6") == 1
    ports = "hubble_port_distribution_total"
    assert value(found, ports, protocol="TCP", port="80") == 2
    assert value(found, ports, protocol="UDP", port="53") == 1
    assert value(found, ports, protocol="ICMPv4", port="0") == 1
    assert value(found, "hubble_icmp_total", family="IPv4", type="EchoRequest") == 1


def test_requests(flows: Any) -> None:
    flows.http()
    flows.http(method="DELETE", verdict=pb.DROPPED, status=403, drop_reason=220)
    flows.http(direction=pb.EGRESS)
    found = scraped(flows, "http", "policy", "flow")
    name = "hubble_http_requests_total"
    assert value(found, name, method="GET", protocol="HTTP/1.1", reporter="server") == 1
    assert value(found, name, method="GET", protocol="HTTP/1.1", reporter="client") == 1
    assert value(found, name, method="DELETE", protocol="HTTP/1.1", reporter="server") == 1
    assert value(found, "hubble_policy_verdicts_total", direction="ingress", match="l7/http", action="dropped") == 1
    assert (
        value(found, "hubble_flows_processed_total", protocol="HTTP", type="L7", subtype="HTTP", verdict="FORWARDED")
        == 2
    )


def test_responses_and_how_long_they_took(flows: Any) -> None:
    for status, microseconds in ((200, 4_000), (200, 30_000), (500, 20_000_000)):
        answer = {"source": flows.server, "destination": flows.client, "source_port": 80, "ct_state": REPLY}
        flows.http(status=status, duration_us=microseconds, **answer)
    flows.http()
    found = scraped(flows, "http:sourceContext=pod")
    told = {"method": "GET", "protocol": "HTTP/1.1", "reporter": "server"}
    assert value(found, "hubble_http_requests_total", source="default/client", **told) == 1
    assert value(found, "hubble_http_responses_total", source="default/server", status="200", **told) == 2
    name, labels = "hubble_http_request_duration_seconds", {"method": "GET", "reporter": "server"}
    labels["source"] = "default/server"
    assert [value(found, f"{name}_bucket", le=le, **labels) for le in ("0.005", "0.05", "10.0", "+Inf")] == [1, 2, 2, 3]
    assert value(found, f"{name}_sum", **labels) == pytest.approx(20.034)
    assert value(found, f"{name}_count", **labels) == 3
    second = scraped(flows, "httpV2:sourceContext=pod")
    assert value(second, "hubble_http_requests_total", source="default/client", status="500", **told) == 1


def test_dns(flows: Any) -> None:
    names = flows.store.dictionaries.requests
    question, refused = (names.intern(NameRecord(name, 1)) for name in ("a.example.", "bad.example."))
    six = names.intern(NameRecord("a.example.", 28))
    answer = names.intern(NameRecord("a.example.", 1, 0, 30, ("192.0.2.1", "192.0.2.2"), 2, ("b.example.",)))
    nothing = names.intern(NameRecord("b.example.", 1, 3))
    message = {"protocol": 17, "destination_port": 53, "tcp_flags": 0, "direction": pb.EGRESS}
    flows.add(kind=Kind.DNS_QUERY, http=question, **message)
    flows.add(kind=Kind.DNS_QUERY, http=six, **message)
    flows.add(kind=Kind.DNS_QUERY, http=refused, verdict=pb.DROPPED, **message)
    flows.add(kind=Kind.DNS_ANSWER, http=answer, **message)
    flows.add(kind=Kind.DNS_ANSWER, http=nothing, **message)
    found = scraped(flows, "dns", "flow", "policy")
    queries, answers = "hubble_dns_queries_total", "hubble_dns_responses_total"
    assert value(found, queries, rcode="", qtypes="A", ips_returned="0") == 1
    assert value(found, queries, rcode="", qtypes="AAAA", ips_returned="0") == 1
    assert value(found, queries, rcode="Policy denied", qtypes="A", ips_returned="0") == 1
    assert value(found, answers, rcode="No Error", qtypes="A", ips_returned="2") == 1
    assert value(found, answers, rcode="Non-Existent Domain", qtypes="A", ips_returned="0") == 1
    assert value(found, "hubble_dns_response_types_total", type="A", qtypes="A") == 1
    assert value(found, "hubble_dns_response_types_total", type="CNAME", qtypes="A") == 1
    seen = value(found, "hubble_flows_processed_total", protocol="DNS", type="L7", subtype="DNS", verdict="FORWARDED")
    assert seen == 4
    assert value(found, "hubble_policy_verdicts_total", direction="egress", match="l7/dns", action="dropped") == 1
    few = scraped(flows, "dns:query;ignoreAAAA")
    assert value(few, queries, rcode="", qtypes="A", ips_returned="0", query="a.example.") == 1
    assert not [labels for _, labels in few if ("qtypes", "AAAA") in labels]


def test_the_world(flows: Any) -> None:
    world = flows.party("192.0.2.1", Reserved.WORLD)
    flows.add(destination=world, destination_port=443)
    flows.add(destination=world, kind=Kind.CLOSE)
    flows.drop(destination=world)
    flows.drop(destination=world, drop_reason=132)
    flows.add()
    name = "hubble_flows_to_world_total"
    found = scraped(flows, "flows-to-world")
    assert value(found, name, protocol="TCP", verdict="FORWARDED") == 1
    assert value(found, name, protocol="TCP", verdict="DROPPED") == 1
    every = scraped(flows, "flows-to-world:any-drop;port")
    assert value(every, name, protocol="TCP", verdict="FORWARDED", port="443") == 1
    assert value(every, name, protocol="TCP", verdict="DROPPED", port="80") == 2


def test_the_host_is_told_no_verdicts(flows: Any) -> None:
    flows.allow(source=flows.party("10.0.0.9", Reserved.HOST))
    assert not [name for name, _ in scraped(flows, "policy") if name.startswith("hubble_policy")]


CONTEXTS = [
    ("sourceContext=pod", {"source": "default/client"}),
    ("sourceContext=app;destinationContext=workload-name|pod-name", {"source": "client", "destination": "server"}),
    ("destinationContext=identity", {"destination": "k8s:app=server"}),
    ("sourceContext=reserved-identity|ip", {"source": "10.0.0.1"}),
    ("labelsContext=destination_pod,source_ip|traffic_direction",
     {"source_ip": "10.0.0.1", "destination_pod": "server", "traffic_direction": "ingress"}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "labels"), CONTEXTS)
def test_contexts_say_who(flows: Any, options: str, labels: dict[str, str]) -> None:
    flows.drop()
    found = scraped(flows, f"drop:{options}")
    assert value(found, "hubble_drop_total", reason="POLICY_DENIED", protocol="TCP", **labels) == 1


def test_a_number_that_means_somebody_else_now_has_their_name(flows: Any) -> None:
    registry = CollectorRegistry()
    metrics = FlowMetrics(registry, parse(["drop:sourceContext=pod"]))
    parties = flows.store.dictionaries.parties
    for pod in ("first", "second"):
        number = parties.intern(flows.party("10.0.0.7", 1, pod=pod))
        flows.drop(source=number)
        metrics.observe(flows.store.segments[-1].view(flows.store.segments[-1].rows), flows.store.dictionaries)
        flows.store.segments.pop().uses.release()
    text = generate_latest(registry).decode()
    assert 'source="default/first"} 1.0' in text
    assert 'source="default/second"} 1.0' in text


def test_series_beyond_the_budget_are_folded_and_told(flows: Any) -> None:
    for number in range(50):
        flows.drop(source=flows.party(f"10.1.0.{number}", 5000 + number, pod=f"p{number}"))
    found = scraped(flows, "drop:sourceContext=pod", limit=20)
    assert len([name for name, _ in found if name == "hubble_drop_total"]) == 21
    assert value(found, "hubble_drop_total", reason="other", protocol="other", source="other") == 30
    assert value(found, "ciliate_metrics_folded_total", metric="hubble_drop") == 30
    assert sum(count for (name, _), count in found.items() if name == "hubble_drop_total") == 50


def test_batches_without_some_columns(flows: Any) -> None:
    flows.store.append({"time_ns": flows.store.segments[0].columns["time_ns"][:0]}, 1) if flows.store.segments else None
    flows.add()
    columns = flows.store.segments[0].view(1)
    registry = CollectorRegistry()
    few = {name: columns[name] for name in ("time_ns", "kind", "verdict", "protocol")}
    FlowMetrics(registry, parse(ALL)).observe(few, flows.store.dictionaries)
    assert "hubble_flows_processed_total" in generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dorp", "group: 'dorp' is not known; did you mean drop?"),
        ("drop:sourcecontext=pod", "did you mean sourceContext?"),
        ("drop:sourceContext=podd", "sourceContext: 'podd' is not known; did you mean pod?"),
        ("drop:labelsContext=source_pod,destination_ipp", "did you mean destination_ip?"),
        ("drop:any-drop", "option of drop: 'any-drop' is not known"),
    ],
)
def test_what_is_not_known_is_refused(text: str, message: str) -> None:
    with pytest.raises(Invalid, match="hubble_metrics") as error:
        parse([text])
    assert message in str(error.value)


def test_twice_is_refused() -> None:
    with pytest.raises(Invalid, match="exclude each other"):
        parse(["http", "httpV2"])
    with pytest.raises(Invalid, match="'drop' is there twice"):
        parse(["drop", "drop:sourceContext=pod"])
