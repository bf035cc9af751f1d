"""Metrics of packets and connections: which rows of a batch count, and with which labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array, Kind
from services.flows.facets import DROP, HUBBLE_REASON, L7, POLICY_VERDICT, TRACE, TRACE_POINTS
from services.flows.metrics.batch import Batch
from services.flows.metrics.family import Series
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
L7_NAMES = {int(Kind.HTTP): "HTTP", int(Kind.DNS_QUERY): "DNS", int(Kind.DNS_ANSWER): "DNS"}
SYN, FIN, RST = 2, 1, 4


def protocol_name(kind: int, number: int) -> str:
    """The `protocol` label of a row."""
    if kind in L7_NAMES:
        return L7_NAMES[kind]
    return L4.get(number, "Unknown L4")  # type: ignore[call-overload, no-any-return]


def _verdict(number: int) -> str:
    return flow_pb2.Verdict.Name(number)  # type: ignore[arg-type]


def flows(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    for types, subs in (batch.first, batch.second):
        points = np.where(types == TRACE, subs, 255)

        def labels(key: Sequence[int]) -> tuple[str, ...]:
            kind, protocol, type_, point, verdict = key
            sub = L7_NAMES[kind] if type_ == L7 else TRACE_POINTS.get(point, "") if type_ == TRACE else ""
            return protocol_name(kind, protocol), TYPES.get(type_, "Unknown"), sub, _verdict(verdict)

        keys = (batch["kind"], batch["protocol"], types, points, batch["verdict"])
        yield Series(np.flatnonzero(types), keys, labels)


def drops(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    """Each dropped packet once, though two flows tell of it."""

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        return flow_pb2.DropReason.Name(key[0]), protocol_name(0, key[1])  # type: ignore[arg-type]

    rows = np.flatnonzero(batch.first[0] == DROP)
    yield Series(rows, (HUBBLE_REASON[batch["drop_reason"]], batch["protocol"]), labels)


def tcp_flags(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    """A record of an opening has the SYN, one of an end how it ended; records in between have every flag so far."""
    kinds, flags = batch["kind"], batch["tcp_flags"]
    tcp = (batch["protocol"] == Protocol.TCP) & (batch["verdict"] == FORWARDED)
    family = batch.parties("source", batch.facts.ipv4).view(np.uint8)
    for name, bit, kind in (("SYN", SYN, Kind.NEW), ("FIN", FIN, Kind.CLOSE), ("RST", RST, Kind.CLOSE)):
        rows = np.flatnonzero(tcp & (kinds == kind) & ((flags & bit) != 0))
        yield Series(rows, (family,), lambda key, name=name: (name, _family(key[0])))  # type: ignore[misc]


def ports(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    opened = (batch["kind"] == Kind.NEW) & (batch["verdict"] == FORWARDED)
    with_ports = np.isin(batch["protocol"], (Protocol.TCP, Protocol.UDP, Protocol.SCTP))
    ports = np.where(with_ports, batch["destination_port"], 0)

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        return protocol_name(0, key[0]), str(key[1])

    yield Series(np.flatnonzero(opened), (batch["protocol"], ports), labels)


def icmp(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    rows = np.flatnonzero(np.isin(batch["protocol"], (Protocol.ICMP, Protocol.ICMPV6)) & (batch["kind"] == Kind.NEW))

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        ipv6 = key[0] == Protocol.ICMPV6
        return _family(int(not ipv6)), icmp_text(key[1], key[2], ipv6=ipv6)

    yield Series(rows, (batch["protocol"], batch["source_port"], batch["destination_port"]), labels)


def policy(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    host = batch.parties("source", batch.facts.host)

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        match = f"l7/{L7_NAMES[key[1]].lower()}" if key[1] in L7_NAMES else MATCHES.get(key[2], "unknown")
        return DIRECTIONS.get(key[0], "traffic_direction_unknown"), match, _verdict(key[3]).lower()

    keys = (batch["direction"], batch["kind"], batch["match_type"], batch["verdict"])
    yield Series(np.flatnonzero(_decided(batch) & ~host), keys, labels)


def decisions(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
    """By policy and rule; our own."""

    def labels(key: Sequence[int]) -> tuple[str, ...]:
        policy, _, rule = batch.facts.decision.names[key[0]].partition("\t")
        return policy, rule, DIRECTIONS.get(key[1], "unknown"), _verdict(key[2]).lower()

    rows = np.flatnonzero(_decided(batch) & (batch["policy"] != 0))
    yield Series(rows, (batch.decision, batch["direction"], batch["verdict"]), labels)


def _decided(batch: Batch) -> Array:
    requests = ((batch["kind"] == Kind.HTTP) & ~batch.responses) | (batch["kind"] == Kind.DNS_QUERY)
    told: Array = (batch.first[0] == POLICY_VERDICT) | (batch.second[0] == POLICY_VERDICT) | requests
    return told


def to_world(batch: Batch, options: Mapping[str, str]) -> Iterator[Series]:
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
