"""The metric groups: which rows of a batch count, and which labels they have.

Every family gets a batch and yields (label values, row indices, count). Context labels are put behind by `exporter`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array, Kind
from services.flows.facets import DROP, HUBBLE_REASON, L7, POLICY_VERDICT, TRACE, TRACE_POINTS
from services.flows.metrics.batch import Batch
from services.flows.summary import RCODES as DNS_CODES
from services.flows.summary import icmp_text
from services.model.verdict import Direction, DropReason, Protocol

FORWARDED, DROPPED, AUDIT = flow_pb2.FORWARDED, flow_pb2.DROPPED, flow_pb2.AUDIT

TYPES = {DROP: "Drop", TRACE: "Trace", POLICY_VERDICT: "PolicyVerdict", L7: "L7"}
L4 = {
    Protocol.TCP: "TCP",
    Protocol.UDP: "UDP",
    Protocol.ICMP: "ICMPv4",
    Protocol.ICMPV6: "ICMPv6",
    Protocol.SCTP: "SCTP",
}
MATCHES = {0: "none", 1: "l3-only", 2: "l3-l4", 3: "l4-only", 4: "all", 5: "l3-proto", 6: "proto-only"}
DIRECTIONS = {int(Direction.INGRESS): "ingress", int(Direction.EGRESS): "egress"}
REPORTERS = {int(Direction.EGRESS): "client", int(Direction.INGRESS): "server"}
L7_NAMES = {int(Kind.HTTP): "HTTP", int(Kind.DNS_QUERY): "DNS", int(Kind.DNS_ANSWER): "DNS"}
HTTP_VERSIONS = {"10": "HTTP/1.0", "11": "HTTP/1.1"}
SYN, FIN, RST = 2, 1, 4


@dataclass(frozen=True, slots=True)
class Series:
    """Rows that count, the columns that tell series apart, and their labels."""

    rows: Array
    keys: Sequence[Array]
    labels: Callable[[Sequence[int]], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of a group. `options` are the group's, by name."""

    name: str
    text: str
    labels: tuple[str, ...]
    series: Callable[[Batch, Mapping[str, str]], Iterator[Series]]
    optional: Mapping[str, str] | None = None
    """Option -> label that it adds."""
    seconds: Callable[[Batch], Array] | None = None
    """A histogram of this measure."""
    swapped: bool = False
    """Its rows are responses, told from the side of who asked."""

    def label_names(self, options: Mapping[str, str]) -> tuple[str, ...]:
        """All labels of the family with these options."""
        added = [label for option, label in (self.optional or {}).items() if option in options]
        return (*self.labels, *added)


def protocol_name(kind: int, number: int) -> str:
    """The `protocol` label of a row."""
    if kind in L7_NAMES:
        return L7_NAMES[kind]
    return L4.get(number, "Unknown L4")  # type: ignore[call-overload, no-any-return]


DNS_LABELS = ("rcode", "qtypes", "ips_returned")
QUERY = {"query": "query"}
RCODES = {0: "No Error", **DNS_CODES}


def _verdict(number: int) -> str:
    return flow_pb2.Verdict.Name(number)  # type: ignore[arg-type]


def _flows(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    for types, subs in (batch.first, batch.second):
        points = np.where(types == TRACE, subs, 255)

        def labels(key: Sequence[int]) -> tuple[str, ...]:
            kind, protocol, type_, point, verdict = key
            sub = L7_NAMES[kind] if type_ == L7 else TRACE_POINTS.get(point, "") if type_ == TRACE else ""
            return protocol_name(kind, protocol), TYPES.get(type_, "Unknown"), sub, _verdict(verdict)

        keys = (batch["kind"], batch["protocol"], types, points, batch["verdict"])
        yield Series(np.flatnonzero(types), keys, labels)


def _drops(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    """Each dropped packet once, though two flows tell of it."""

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        return flow_pb2.DropReason.Name(key[0]), protocol_name(0, key[1])  # type: ignore[arg-type]

    rows = np.flatnonzero(batch.first[0] == DROP)
    yield Series(rows, (HUBBLE_REASON[batch["drop_reason"]], batch["protocol"]), labels)


def _tcp_flags(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    """A record of an opening has the SYN, one of an end how it ended; records in between have every flag so far."""
    kinds, flags = batch["kind"], batch["tcp_flags"]
    tcp = (batch["protocol"] == Protocol.TCP) & (batch["verdict"] == FORWARDED)
    family = batch.parties("source", batch.facts.ipv4).view(np.uint8)
    for name, bit, kind in (("SYN", SYN, Kind.NEW), ("FIN", FIN, Kind.CLOSE), ("RST", RST, Kind.CLOSE)):
        rows = np.flatnonzero(tcp & (kinds == kind) & ((flags & bit) != 0))
        yield Series(rows, (family,), lambda key, name=name: (name, _family(key[0])))  # type: ignore[misc]


def _ports(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    opened = (batch["kind"] == Kind.NEW) & (batch["verdict"] == FORWARDED)
    with_ports = np.isin(batch["protocol"], (Protocol.TCP, Protocol.UDP, Protocol.SCTP))
    ports = np.where(with_ports, batch["destination_port"], 0)

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        return protocol_name(0, key[0]), str(key[1])

    yield Series(np.flatnonzero(opened), (batch["protocol"], ports), labels)


def _icmp(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    rows = np.flatnonzero(np.isin(batch["protocol"], (Protocol.ICMP, Protocol.ICMPV6)) & (batch["kind"] == Kind.NEW))

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        ipv6 = key[0] == Protocol.ICMPV6
        return _family(int(not ipv6)), icmp_text(key[1], key[2], ipv6=ipv6)

    yield Series(rows, (batch["protocol"], batch["source_port"], batch["destination_port"]), labels)


def _policy(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    host = batch.parties("source", batch.facts.host)

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        match = f"l7/{L7_NAMES[key[1]].lower()}" if key[1] in L7_NAMES else MATCHES.get(key[2], "unknown")
        return DIRECTIONS.get(key[0], "traffic_direction_unknown"), match, _verdict(key[3]).lower()

    keys = (batch["direction"], batch["kind"], batch["match_type"], batch["verdict"])
    requests = ((batch["kind"] == Kind.HTTP) & ~batch.responses) | (batch["kind"] == Kind.DNS_QUERY)
    told = (batch.first[0] == POLICY_VERDICT) | (batch.second[0] == POLICY_VERDICT) | requests
    yield Series(np.flatnonzero(told & ~host), keys, labels)


def _requests(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    rows = np.flatnonzero((batch["kind"] == Kind.HTTP) & ~batch.responses)
    yield Series(rows, (batch.http, batch["direction"]), lambda key: (*_request(batch, key[0]), _reporter(key[1])))


def _responses(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    keys = (batch.http, batch["status"], batch["direction"])

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        return (*_request(batch, key[0]), str(key[1]), _reporter(key[2]))

    yield Series(np.flatnonzero(batch.responses), keys, labels)


def _durations(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    keys = (batch.http, batch["direction"])
    yield Series(np.flatnonzero(batch.responses), keys, lambda key: (_request(batch, key[0])[0], _reporter(key[1])))


def _seconds(batch: Batch) -> Array:
    return batch["duration_us"] / 1e6


def _request(batch: Batch, number: int) -> tuple[str, str]:
    """(method, protocol)."""
    method, _, version = batch.facts.request.names[number].partition(" ")
    return method, HTTP_VERSIONS.get(version, "HTTP/1")


def _reporter(direction: int) -> str:
    return REPORTERS.get(direction, "unknown")


def _dns(kind: Kind, *, refused: bool) -> Callable[[Batch, Mapping[str, str]], Iterator[Series]]:
    """Questions (`refused`: those that policy refused, under a code of their own) or answers."""

    def series(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
        rows = batch["kind"] == kind
        if kind == Kind.DNS_QUERY:
            rows &= (batch["verdict"] == DROPPED) == refused

        def labels(key: Sequence[int]) -> tuple[str, ...]:
            rcode, qtype, addresses, _, query = _dns_parts(batch, key[0])
            code = "Policy denied" if refused else RCODES.get(rcode, "") if kind == Kind.DNS_ANSWER else ""
            return (code, qtype, addresses, *((query,) if "query" in options else ()))

        yield Series(_without_aaaa(batch, np.flatnonzero(rows), options), (batch.dns,), labels)

    return series


def _dns_queries(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    for refused in (False, True):
        yield from _dns(Kind.DNS_QUERY, refused=refused)(batch, options)


def _dns_types(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    answers = _without_aaaa(batch, np.flatnonzero(batch["kind"] == Kind.DNS_ANSWER), options)
    for wanted in ("A", "AAAA"):
        known = {n: wanted in _dns_parts(batch, n)[3].split("+") for n in np.unique(batch.dns[answers]).tolist()}
        rows = answers[[known[number] for number in batch.dns[answers].tolist()]] if len(answers) else answers

        def labels(key: Sequence[int], wanted: str = wanted) -> tuple[str, ...]:
            _, qtype, _, _, query = _dns_parts(batch, key[0])
            return (wanted, qtype, *((query,) if "query" in options else ()))

        yield Series(rows, (batch.dns,), labels)


def _dns_parts(batch: Batch, number: int) -> tuple[int, str, str, str, str]:
    """(rcode, type asked for, addresses returned, types returned, name)."""
    rcode, qtype, addresses, types, query = (batch.facts.dns.names[number] or "0 Unknown 0 - ").split(" ", 4)
    return int(rcode), qtype, addresses, types, query


def _without_aaaa(batch: Batch, rows: Array, options: Mapping[str, str]) -> Array:
    if "ignoreAAAA" not in options or not len(rows):
        return rows
    return rows[[_dns_parts(batch, number)[1] != "AAAA" for number in batch.dns[rows].tolist()]]


def _to_world(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    world = batch.parties("destination", batch.facts.world)
    opened = (batch["kind"] == Kind.NEW) & (batch["verdict"] != DROPPED)
    refused = batch["verdict"] == DROPPED
    if "any-drop" not in options:
        refused = refused & (HUBBLE_REASON[batch["drop_reason"]] == DropReason.POLICY_DENIED)
    keys = [batch["protocol"], batch["verdict"]] + ([batch["destination_port"]] if "port" in options else [])

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        return (protocol_name(0, key[0]), _verdict(key[1]), *(str(port) for port in key[2:]))

    yield Series(np.flatnonzero(world & (opened | refused)), keys, labels)


def _family(is_ipv4: int) -> str:
    return "IPv4" if is_ipv4 else "IPv6"


GROUPS: dict[str, tuple[Family, ...]] = {
    "flow": (Family("hubble_flows_processed", "Flows", ("protocol", "type", "subtype", "verdict"), _flows),),
    "drop": (Family("hubble_drop", "Dropped packets", ("reason", "protocol"), _drops),),
    "tcp": (Family("hubble_tcp_flags", "TCP flags of openings and ends", ("flag", "family"), _tcp_flags),),
    "port-distribution": (
        Family("hubble_port_distribution", "Connections by destination port", ("protocol", "port"), _ports),
    ),
    "icmp": (Family("hubble_icmp", "ICMP messages that open an exchange", ("family", "type"), _icmp),),
    "policy": (Family("hubble_policy_verdicts", "Decisions of policy", ("direction", "match", "action"), _policy),),
    "http": (
        Family("hubble_http_requests", "HTTP requests", ("method", "protocol", "reporter"), _requests),
        Family("hubble_http_responses", "HTTP responses", ("method", "protocol", "status", "reporter"), _responses),
        Family(
            "hubble_http_request_duration_seconds",
            "From request to response head",
            ("method", "reporter"),
            _durations,
            seconds=_seconds,
        ),
    ),
    "httpV2": (
        Family(
            "hubble_http_requests",
            "HTTP requests that were answered",
            ("method", "protocol", "status", "reporter"),
            _responses,
            swapped=True,
        ),
        Family(
            "hubble_http_request_duration_seconds",
            "From request to response head",
            ("method", "reporter"),
            _durations,
            seconds=_seconds,
            swapped=True,
        ),
    ),
    "dns": (
        Family("hubble_dns_queries", "DNS questions", DNS_LABELS, _dns_queries, QUERY),
        Family("hubble_dns_responses", "DNS answers", DNS_LABELS, _dns(Kind.DNS_ANSWER, refused=False), QUERY),
        Family("hubble_dns_response_types", "Record types in DNS answers", ("type", "qtypes"), _dns_types, QUERY),
    ),
    "flows-to-world": (
        Family(
            "hubble_flows_to_world",
            "Connections out of the cluster",
            ("protocol", "verdict"),
            _to_world,
            {"port": "port"},
        ),
    ),
}
