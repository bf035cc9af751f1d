"""Every filter of the Hubble API by a table: (rows, filter, which rows pass)."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.pb.flow import flow_pb2 as pb
from services.flows.columns import Kind
from services.flows.entries import HttpRequest, NodeRef, ServiceRef
from services.flows.filters import FilterError, Filters
from services.flows.message_filter import MessageFilters

EAST = NodeRef("b1", "east", ("kubernetes.io/hostname=b1", "zone=z"))


@pytest.fixture
def mixed(flows: Any) -> Any:
    """0 allowed TCP, 1 default deny to v6, 2 UDP to the world, 3 ICMP, 4 HTTP GET, 5 HTTP POST denied, 6 close."""
    world = flows.party("192.0.2.9", 2, labels=("reserved:world",))
    cidr = flows.party("198.51.100.7", 16777217, labels=("cidr:198.51.100.0/24", "reserved:world"))
    six = flows.party("fd00::2", 1003, pod="web-1", namespace="shop", labels=("k8s:app=web", "k8s:tier=3"),
                      workload="web", workload_kind="ReplicaSet")  # fmt: skip
    flows.allow(service=ServiceRef("default", "my-webapp-svc"))
    flows.drop(destination=six, source=flows.party("fd00::1", 1001, pod="client"), destination_port=443)
    flows.add(destination=world, protocol=17, direction=2, source_port=5353, destination_port=53, tcp_flags=0)
    flows.add(source=cidr, protocol=1, source_port=8, destination_port=0, tcp_flags=0)
    flows.http(node=EAST, trace_high=0x4BF92F3577B34DA6, trace_low=0xA3CE929D0E0E4736, parent_span=1, trace_flags=1)
    flows.http("/admin%20x?y=1", "POST", verdict=pb.DROPPED, status=403, destination_port=8080)
    flows.add(kind=Kind.CLOSE, ct_state=1, tcp_flags=0x13)
    flows.store.append_lost(1, 1, 0, 5, 1, 2)
    return flows


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
EVERYTHING = [0, 1, 2, 3, 4, 5, 6]


def f(**fields: Any) -> pb.FlowFilter:
    return pb.FlowFilter(**fields)


def types(*pairs: tuple[int, int | None]) -> list[pb.EventTypeFilter]:
    return [pb.EventTypeFilter(type=t, match_sub_type=s is not None, sub_type=s or 0) for t, s in pairs]


def cel(*expressions: str, **fields: Any) -> pb.FlowFilter:
    return f(experimental=pb.FlowFilter.Experimental(cel_expression=expressions), **fields)


TABLE: list[tuple[pb.FlowFilter, list[int]]] = [
    (f(), EVERYTHING),
    (f(source_ip=["10.0.0.1"]), [0, 2, 4, 5, 6]),
    (f(source_ip=["10.0.0.0/30"]), [0, 2, 4, 5, 6]),
    (f(source_ip=["fd00::/64"]), [1]),
    (f(source_ip=["fd00::1"]), [1]),
    (f(source_ip=["FD00::1"]), []),  # equality is textual
    (f(source_ip=["fd00:0::1"]), []),
    (f(destination_ip=["192.0.2.9", "fd00::2"]), [1, 2]),
    (f(source_ip_xlated=["10.0.0.1"]), []),
    (f(source_pod=["client"]), [0, 1, 2, 4, 5, 6]),  # no slash: namespace default
    (f(destination_pod=["web"]), []),
    (f(destination_pod=["shop/web"]), [1]),
    (f(destination_pod=["shop/"]), [1]),
    (f(destination_pod=["/web"]), [1]),
    (f(destination_pod=["/"]), [0, 1, 3, 4, 5, 6]),
    (f(destination_pod=["default/serv", "shop/w"]), [0, 1, 3, 4, 5, 6]),
    (f(destination_service=["my-webapp"]), [0]),
    (f(destination_service=["other/"]), []),
    (f(source_service=["my-webapp"]), []),
    (f(source_label=["role=frontend"]), [0, 2, 4, 5, 6]),
    (f(source_label=["k8s:role"]), [0, 2, 4, 5, 6]),
    (f(source_label=["any:role=frontend"]), [0, 2, 4, 5, 6]),
    (f(source_label=["reserved:role"]), []),
    (f(source_label=["!role"]), [1, 3]),
    (f(source_label=["role!=frontend"]), [1, 3]),
    (f(source_label=["role in (backend, frontend)"]), [0, 2, 4, 5, 6]),
    (f(source_label=["role notin (frontend)"]), [1, 3]),
    (f(destination_label=["app=web,tier>2"]), [1]),
    (f(destination_label=["app=web,tier<3"]), []),
    (f(destination_label=["reserved:world", "app=web"]), [1, 2]),
    (f(destination_label=["$world"]), [2]),
    (f(source_label=["cidr:198.51.0.0/16"]), [3]),
    (f(source_label=["cidr:198.51.100.0/25"]), []),
    (f(node_labels=["zone=z"]), [4]),
    (f(source_identity=[1001]), [0, 1, 2, 4, 5, 6]),
    (f(destination_identity=[2, 1003]), [1, 2]),
    (f(destination_workload=[pb.Workload(name="web")]), [1]),
    (f(destination_workload=[pb.Workload(kind="Deployment")]), []),
    (f(destination_workload=[pb.Workload(kind="ReplicaSet", name="web")]), [1]),
    (f(source_cluster_name=["default"]), [0, 1, 2, 4, 5, 6]),
    (f(source_cluster_name=["def*"]), []),
    (f(source_fqdn=["example.com"]), []),
    (f(dns_query=["example"]), []),
    (f(node_name=["node1"]), [0, 1, 2, 3, 5, 6]),
    (f(node_name=["default/"]), [0, 1, 2, 3, 5, 6]),
    (f(node_name=["default/node*"]), [0, 1, 2, 3, 5, 6]),
    (f(node_name=["east/b1"]), [4]),
    (f(node_name=["east/"]), [4]),
    (f(node_name=["/b*"]), [4]),
    (f(source_port=["5353"]), [2]),
    (f(destination_port=["80", "443"]), [0, 1, 4, 6]),
    (f(source_port=["8"]), []),  # an ICMP type is no port
    (f(protocol=["TCP"]), [0, 1, 4, 5, 6]),
    (f(protocol=["icmp"]), [3]),
    (f(protocol=["icmpv6"]), []),
    (f(protocol=["udp", "http"]), [2, 4, 5]),
    (f(protocol=["dns"]), []),
    (f(tcp_flags=[pb.TCPFlags(SYN=True)]), [0, 1, 6]),  # L7 flows have none
    (f(tcp_flags=[pb.TCPFlags(SYN=True, ACK=True)]), [6]),
    (f(tcp_flags=[pb.TCPFlags(FIN=True), pb.TCPFlags(RST=True)]), [6]),
    (f(tcp_flags=[pb.TCPFlags()]), [0, 1, 6]),
    (f(tcp_flags=[pb.TCPFlags(NS=True)]), []),
    (f(ip_version=[pb.IPv6]), [1]),
    (f(ip_version=[pb.IPv4]), [0, 2, 3, 4, 5, 6]),
    (f(ip_version=[pb.IP_NOT_USED]), []),
    (f(verdict=[pb.DROPPED]), [1, 5]),
    (f(verdict=[pb.FORWARDED, pb.AUDIT]), [0, 2, 3, 4, 6]),
    (f(drop_reason_desc=[pb.POLICY_DENIED]), [1]),  # a denied request carries no reason
    (f(drop_reason_desc=[pb.POLICY_DENY]), []),
    (f(event_type=types((1, None))), [1]),
    (f(event_type=types((1, 133))), [1]),
    (f(event_type=types((1, 181))), []),
    (f(event_type=types((5, None))), [0, 1]),
    (f(event_type=types((4, None))), [0, 2, 3, 6]),
    (f(event_type=types((4, 0))), [0, 3, 6]),  # to-endpoint is sub type 0
    (f(event_type=types((129, None))), [4, 5]),
    (f(event_type=types((0, None))), EVERYTHING),
    (f(event_type=types((2, None))), []),
    (f(reply=[False]), EVERYTHING),
    (f(reply=[True]), []),
    (f(traffic_direction=[pb.EGRESS]), [2]),
    (f(traffic_direction=[pb.TRAFFIC_DIRECTION_UNKNOWN]), []),
    (f(encrypted=[False]), EVERYTHING),
    (f(encrypted=[True]), []),
    (f(interface=[pb.NetworkInterface(name="eth0")]), []),
    (f(trace_id=["abc"]), []),
    (f(trace_id=[TRACE_ID]), [4]),
    (f(trace_id=[TRACE_ID[::-1], TRACE_ID]), [4]),
    (f(trace_id=[TRACE_ID.upper()]), []),  # equality is textual
    (f(trace_id=[TRACE_ID[:31] + "7"]), []),
    (f(trace_id=["0" * 32]), []),  # no trace
    (f(trace_id=[""]), [0, 1, 2, 3, 5, 6]),
    (f(trace_id=["", TRACE_ID]), EVERYTHING),
    (cel(f"_flow.trace_context.parent.trace_id == '{TRACE_ID}'"), [4]),
    (f(ip_trace_id=[7]), []),
    (f(http_method=["get"]), [4]),
    (f(http_path=["^/api/v[0-9]/users$"]), [4]),
    (f(http_path=["admin x$"]), [5]),  # decoded, without the query
    (f(http_url=["^http://10.0.0.2/api"]), [4]),
    (f(http_url=["10.0.0.2:8080/admin"]), [5]),
    (f(http_status_code=["403", "5+"]), []),  # a denied request has no code
    (f(http_header=[pb.HTTPHeader(key="a", value="b")]), []),
    (f(uuid=["f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "nonsense"]), []),
    (f(http_path=["(a|a)*$"]), [4, 5]),  # RE2: linear in the path, whatever the expression
    (cel("true"), EVERYTHING),
    (cel("false"), []),
    (cel("_flow.verdict == Verdict.DROPPED"), [1, 5]),
    (cel("_flow.verdict == flow.Verdict.DROPPED"), [1, 5]),
    (cel("_flow.IP.source == '10.0.0.1' && has(_flow.l4.TCP)"), [0, 4, 5, 6]),
    (cel("_flow.l4.UDP.destination_port == uint(53)"), [2]),
    (cel("_flow.source.labels.exists(l, l.startsWith('cidr:'))"), [3]),
    (cel("_flow.l7.http.url.matches('^http://10[.]0[.]0[.]2/api')"), [4]),
    (cel("_flow.node_name == 'east/b1'"), [4]),
    (cel("_flow.event_type.type == 1"), [1]),
    (cel("_flow.event_type.type == 5"), [0]),
    (cel("_flow.event_type.type == 5", event_type=types((5, None))), [0, 1]),  # the facet that is shown
    (cel("_flow.verdict == Verdict.DROPPED", "_flow.event_type.type == 4"), [1, 2, 3, 5, 6]),  # a list is OR
    (cel("_flow.verdict == Verdict.DROPPED", protocol=["http"]), [5]),
    (cel("_flow.source_names[0] == 'x'"), []),  # fails on every flow: no such index
    (cel("_flow.source_names[0] == 'x'", "true"), []),  # ... and a failure makes the whole condition false
    (cel("_flow.extensions.kind == 4"), [6]),  # what the record knows beyond Hubble's messages: a close
    # AND across fields, OR inside one
    (f(source_pod=["client"], verdict=[pb.DROPPED]), [1, 5]),
    (f(source_pod=["client"], destination_pod=["shop/"]), [1]),
]


@pytest.mark.parametrize(("given", "expected"), TABLE, ids=lambda value: str(value).replace("\n", " ").strip()[:60])
def test_filter(mixed: Any, given: pb.FlowFilter, expected: list[int]) -> None:
    assert mixed.matching(given) == expected


@pytest.mark.parametrize(("given", "expected"), TABLE, ids=lambda value: str(value).replace("\n", " ").strip()[:60])
def test_filter_on_messages(mixed: Any, given: pb.FlowFilter, expected: list[int]) -> None:
    """Files of flows are filtered as the store is; a message has one event type, that of the facet it was shown as."""
    shown = mixed.responses(*([given] if given.event_type else []))
    number = {each.time.ToNanoseconds(): place for place, each in enumerate(_flows(mixed.responses()))}
    if "extensions" in str(given):
        expected = []  # of our own client's alone
    found = [number[each.time.ToNanoseconds()] for each in _flows(shown) if MessageFilters([given]).match(each.flow)]
    assert found == expected


def _flows(responses: Any) -> Any:
    return [each for each in responses if each.HasField("flow")]


def test_every_field_of_the_schema_is_decided_here() -> None:
    decided = {field.name for given, _ in TABLE for field, _ in given.ListFields()} | {
        "experimental",
        "destination_fqdn",
    }
    mirrored = {name.replace("source", "destination") for name in decided}
    mirrored |= {name.replace("destination", "source") for name in decided}
    assert {field.name for field in pb.FlowFilter.DESCRIPTOR.fields} <= decided | mirrored


ERRORS = [
    (f(source_ip=["10.0.0"]), "source_ip"),
    (f(destination_ip=["10.0.0.0/64"]), "destination_ip"),
    (f(source_pod=[""]), "source_pod"),
    (f(destination_service=[""]), "destination_service"),
    (f(source_fqdn=["a_b!"]), "source_fqdn"),
    (f(source_fqdn=["a.."]), "source_fqdn"),
    (f(source_label=["a=b=c"]), "source_label"),
    (f(destination_label=["a in (b"]), "destination_label"),
    (f(node_labels=["x>y"]), "node_labels"),
    (f(source_cluster_name=[""]), "source_cluster_name"),
    (f(node_name=["a/b/c"]), "node_name"),
    (f(node_name=[""]), "node_name"),
    (f(source_port=["65536"]), "source_port"),
    (f(destination_port=["http"]), "destination_port"),
    (f(protocol=["quic"]), "protocol"),
    (f(http_status_code=["6+"]), "http_status_code"),
    (f(http_status_code=["20"]), "http_status_code"),
    (f(http_path=["("]), "http_path"),
    (f(http_url=["a" * 5000]), "http_url"),
    (f(dns_query=["["]), "dns_query"),
    (cel("_flow.verdict =="), "cel_expression.*1:17: Syntax error"),
    (cel("_flow.nope == 1"), "cel_expression.*1:6: undefined field 'nope'"),
    (cel("verdict == 1"), "cel_expression.*1:1: undeclared reference to 'verdict'"),
    (cel("_flow.verdict == Verdict.NOPE"), "cel_expression.*1:"),
    (cel("_flow.l4.TCP.destination_port == 80u", "_flow.source"), "cel_expression.*flow.Endpoint, not a bool"),
    (cel("true || " * 2000 + "true"), "cel_expression.*longer than"),
    (cel(*["true"] * 17), "cel_expression.*at most 16"),
    (cel("(" * 200 + "true" + ")" * 200), "cel_expression.*recursion"),
    # HTTP filters need L7 among the event types, if any are named
    (f(http_method=["GET"], event_type=types((4, None))), "http_method"),
    (f(http_status_code=["404"], event_type=types((1, None))), "http_status_code"),
]


@pytest.mark.parametrize(("given", "field"), ERRORS, ids=lambda value: str(value).replace("\n", " ").strip()[:60])
def test_a_filter_that_cannot_be_built_names_its_field(given: pb.FlowFilter, field: str) -> None:
    with pytest.raises(FilterError, match=field):
        Filters([given])
    with pytest.raises(FilterError, match=field):
        Filters([], [given])
    with pytest.raises(FilterError, match=field):
        MessageFilters([given])


def test_http_filters_go_with_l7_among_others(mixed: Any) -> None:
    assert mixed.matching(f(http_method=["GET"], event_type=types((4, None), (129, None)))) == [4]


def test_allow_list_is_or_and_deny_list_takes_away(mixed: Any) -> None:
    assert mixed.matching(f(verdict=[pb.DROPPED]), f(protocol=["icmp"])) == [1, 3, 5]
    assert mixed.matching(deny=(f(protocol=["tcp"]),)) == [2, 3]
    assert mixed.matching(f(verdict=[pb.DROPPED]), deny=(f(ip_version=[pb.IPv6]),)) == [5]


def test_an_empty_filter_cancels_the_allow_list_and_hides_all_in_the_deny_list(mixed: Any) -> None:
    assert mixed.matching(f(), f(protocol=["icmp"])) == EVERYTHING
    assert mixed.matching(deny=(f(),)) == []


def test_a_row_is_found_under_either_of_its_event_types_and_shown_once(mixed: Any) -> None:
    both = mixed.responses(f(event_type=types((1, None), (5, None))))
    shown = [(each.flow.event_type.type, each.flow.verdict) for each in both if each.HasField("flow")]
    assert shown == [(5, pb.FORWARDED), (1, pb.DROPPED)]
    verdicts = [each.flow for each in mixed.responses(f(event_type=types((5, None)))) if each.HasField("flow")]
    assert [(each.event_type.type, each.verdict) for each in verdicts] == [(5, pb.FORWARDED), (5, pb.DROPPED)]


def test_a_uuid_finds_its_flow(mixed: Any) -> None:
    uuids = [each.flow.uuid for each in mixed.responses() if each.HasField("flow")]
    assert len(set(uuids)) == len(uuids)
    for number, text in enumerate(uuids):
        assert mixed.matching(f(uuid=[text])) == [number]


def test_answers_follow_the_dictionary_when_a_number_changes_its_meaning(new_flows: Any) -> None:
    flows = new_flows(512)
    filters = Filters([f(source_pod=["gone"])])
    flows.add(source=flows.party("10.0.0.9", 9, pod="gone"))
    segment = flows.store.segments[0]

    def matches(rows: Any) -> int:
        columns = {name: values[: rows.rows] for name, values in rows.columns.items()}
        return int(filters.match(columns, flows.store.dictionaries)[0].sum())

    assert matches(segment) == 1
    for _ in range(1024):  # evicts it, and frees its number
        flows.add()
    flows.add(source=flows.party("10.0.0.10", 10, pod="other"))
    assert [matches(segment) for segment in flows.store.segments] == [0] * len(flows.store.segments)
    flows.add(source=flows.party("10.0.0.9", 9, pod="gone"))
    assert matches(flows.store.segments[-1]) == 1


def test_hostile_labels_and_paths_stay_texts(flows: Any) -> None:
    odd = flows.party("10.0.0.3", 3, pod="x", labels=("nosource", "k8s:a=b=c", "k8s:"))
    flows.add(source=odd, kind=Kind.HTTP, http=HttpRequest("", "*", 0, 1))
    assert flows.matching(f(source_label=["unspec:nosource"])) == [0]
    assert flows.matching(f(http_path=["."])) == []  # no request URI
    assert flows.matching(f(http_method=["GET"])) == []


def test_responses_have_a_status_and_a_server_as_their_source(flows: Any) -> None:
    for status in (200, 404, 503, 0):
        flows.http("/a", ct_state=2, status=status, source=flows.server, destination=flows.client, source_port=8080)
    flows.http("/a", destination_port=8080)
    assert flows.matching(f(http_status_code=["404", "5+"])) == [1, 2]
    assert flows.matching(f(http_status_code=["40+"])) == [1]
    assert flows.matching(f(reply=[True])) == [0, 1, 2, 3]
    assert flows.matching(f(http_url=["^http://10.0.0.2:8080/a$"])) == [0, 1, 2, 3, 4]


def test_an_expression_has_a_budget(flows: Any) -> None:
    flows.add()
    many = "[" + ",".join(["1"] * 60) + "]"
    assert flows.matching(cel(f"{many}.all(a, {many}.all(b, {many}.all(c, {many}.all(d, true))))")) == []
    assert flows.matching(cel(f"{many}.all(a, {many}.all(b, true))")) == [0]
