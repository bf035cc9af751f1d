"""Rows -> `observer.GetFlowsResponse`, for the rows that somebody asked for (the Hubble API's reference, section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2 as pb
from services.common.pb.observer import observer_pb2
from services.flows import mask, summary
from services.flows.columns import Array, Columns, Kind, length
from services.flows.dictionary import Dictionaries
from services.flows.entries import Decision, NameRecord, NodeRef, Party, ProcessRef
from services.flows.facets import AUDIT, DROP, DROPPED, HUBBLE_REASON, L7, POLICY_VERDICT, TRACE, event_types, replies
from services.flows.names import request_url, row_uuids, trace_id
from services.model.addresses import V4_MAPPED_PREFIX, from_bytes
from services.model.verdict import Direction, Protocol

NANOSECONDS = 1_000_000_000
POLICY_LABEL = "k8s:io.cilium.k8s.policy"
RULE_LABEL = "ciliate:rule"
"""Hubble's policies have no field for the rule in them."""

LOST_SOURCES = {1: pb.PERF_EVENT_RING_BUFFER, 2: pb.OBSERVER_EVENTS_QUEUE, 3: pb.OBSERVER_EVENTS_QUEUE}
"""Our place of loss (`ingest.v1.LostSource`) -> Hubble's."""


UNPARSED = "::"
"""The address of a packet that was dropped before its addresses were read."""


_COUNTERS = (
    "packets",
    "reply_packets",
    "bytes",
    "reply_bytes",
    "rtt_us",
    "retransmits",
    "duration_us",
    "policy_revision",
)


class Row:
    """One row's values as attributes."""

    __slots__ = ("__dict__",)

    def __init__(self, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        self.__dict__.update(zip(names, values, strict=True))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Renderer:
    """Renders for one stream: parties are rendered once and copied."""

    def __init__(
        self, dictionaries: Dictionaries, version: str, fields: mask.Tree | None = None, *, details: bool = False
    ) -> None:
        """`details`: with `FlowDetails` in the extensions."""
        self._dictionaries, self._fields, self._details = dictionaries, fields, details
        self._emitter = pb.Emitter(name="Ciliate", version=version)
        self._endpoints: dict[int, tuple[int, pb.Endpoint, str, bool]] = {}

    def responses(self, columns: Columns, facets: Array) -> Iterator[observer_pb2.GetFlowsResponse]:
        """One response per row, in order."""
        first, second = event_types(columns, 0), event_types(columns, 1)
        reply, known = replies(columns)
        names = (*columns, "type", "sub_type", "reply", "reply_known", "uuid")
        derived = [
            [pair[facet][place] for place, facet in enumerate(facets.tolist())]
            for pair in ((first[0].tolist(), second[0].tolist()), (first[1].tolist(), second[1].tolist()))
        ]
        uuids = row_uuids(columns, self._dictionaries)
        values = [*(column.tolist() for column in columns.values()), *derived, reply.tolist(), known.tolist(), uuids]
        assert len(uuids) == length(columns)
        for each in zip(*values, strict=True):
            row = Row(names, each)
            yield self._lost(row) if row.kind == Kind.LOST else self._flow(row)

    def _lost(self, row: Row) -> observer_pb2.GetFlowsResponse:
        response = self._response(row)
        lost = response.lost_events
        lost.source = LOST_SOURCES.get(row.drop_reason, pb.UNKNOWN_LOST_EVENT_SOURCE)
        lost.num_events_lost = row.bytes
        lost.cpu.value = row.source_port
        set_time(lost.first, row.time_ns - row.reply_bytes)
        set_time(lost.last, row.time_ns)
        return response

    def _response(self, row: Row) -> observer_pb2.GetFlowsResponse:
        node = self._dictionaries.nodes[row.node]
        response = observer_pb2.GetFlowsResponse(node_name=node.absolute if node else "")
        set_time(response.time, row.time_ns)
        return response

    def _flow(self, row: Row) -> observer_pb2.GetFlowsResponse:
        response = self._response(row)
        flow = response.flow
        flow.time.CopyFrom(response.time)
        flow.uuid, flow.node_name = row.uuid, response.node_name
        flow.emitter.CopyFrom(self._emitter)
        node = self._dictionaries.nodes[row.node] or NodeRef("")
        flow.node_labels.extend(node.labels)
        flow.verdict = row.verdict
        flow.Type = pb.L7 if row.type == L7 else pb.L3_L4
        flow.event_type.type, flow.event_type.sub_type = row.type, row.sub_type
        if row.direction in (Direction.INGRESS, Direction.EGRESS):
            flow.traffic_direction = row.direction
        if row.reply_known:
            flow.is_reply.value = flow.reply = row.reply
        ipv6 = self._sides(flow, row)
        self._layer4(flow, row)
        if row.trace_high or row.trace_low:
            flow.trace_context.parent.trace_id = trace_id(row.trace_high, row.trace_low)
        service = self._dictionaries.services[row.service]
        if service is not None:
            flow.destination_service.name, flow.destination_service.namespace = service.name, service.namespace
        decision = self._dictionaries.decisions[row.policy]
        self._by_type(flow, row)
        if decision is not None:
            self._policies(flow, row, decision)
        self._summarise(flow, row, decision, ipv6=ipv6)
        if self._details:
            flow.extensions.Pack(_details(row, decision, self._dictionaries.processes[row.process]))
        if self._fields is not None:
            mask.apply(self._fields, flow)
        return response

    def _sides(self, flow: pb.Flow, row: Row) -> bool:
        source, source_ip, ipv6 = self._endpoint(row.source)
        destination, destination_ip, _ = self._endpoint(row.destination)
        flow.source.CopyFrom(source)
        flow.destination.CopyFrom(destination)
        for number, names in ((row.source, flow.source_names), (row.destination, flow.destination_names)):
            party = self._dictionaries.parties[number]
            if party is not None and party.names:
                names.extend(party.names)
        if source_ip != UNPARSED or destination_ip != UNPARSED:
            flow.IP.source, flow.IP.destination = source_ip, destination_ip
            flow.IP.ipVersion = pb.IPv6 if ipv6 else pb.IPv4
        return ipv6

    def _endpoint(self, number: int) -> tuple[pb.Endpoint, str, bool]:
        """(endpoint, address text, is IPv6) of a party."""
        generation = int(self._dictionaries.parties.generation[number])
        known = self._endpoints.get(number)
        if known is None or known[0] != generation:
            party = self._dictionaries.parties[number] or Party(bytes(16))
            known = self._endpoints[number] = (generation, *_rendered(party))
        return known[1], known[2], known[3]

    @staticmethod
    def _layer4(flow: pb.Flow, row: Row) -> None:
        ports = {"source_port": row.source_port, "destination_port": row.destination_port}
        match row.protocol:
            case Protocol.TCP:
                flow.l4.TCP.CopyFrom(pb.TCP(**ports))
                if row.kind != Kind.HTTP:
                    for name in summary.tcp_flag_names(row.tcp_flags):
                        setattr(flow.l4.TCP.flags, name, True)
            case Protocol.UDP:
                flow.l4.UDP.CopyFrom(pb.UDP(**ports))
            case Protocol.SCTP:
                flow.l4.SCTP.CopyFrom(pb.SCTP(**ports))
            case Protocol.ICMP:
                flow.l4.ICMPv4.CopyFrom(pb.ICMPv4(type=row.source_port, code=row.destination_port))
            case Protocol.ICMPV6:
                flow.l4.ICMPv6.CopyFrom(pb.ICMPv6(type=row.source_port, code=row.destination_port))

    @staticmethod
    def _by_type(flow: pb.Flow, row: Row) -> None:
        if row.type in (DROP, POLICY_VERDICT) and row.verdict == DROPPED:
            reason = int(HUBBLE_REASON[row.drop_reason])
            flow.drop_reason = reason
            flow.drop_reason_desc = reason  # type: ignore[assignment]
        if row.type == POLICY_VERDICT:
            flow.policy_match_type = row.match_type
        if row.type == TRACE:
            flow.trace_observation_point = row.sub_type or pb.TO_ENDPOINT
            flow.trace_reason = pb.NEW if row.kind == Kind.NEW else pb.ESTABLISHED

    @staticmethod
    def _policies(flow: pb.Flow, row: Row, decision: Decision) -> None:
        side = "egress" if row.direction == Direction.EGRESS else "ingress"
        target = getattr(flow, f"{side}_{'denied' if row.verdict in (DROPPED, AUDIT) else 'allowed'}_by")
        for policy in decision.policies:
            labels = [f"{POLICY_LABEL}.derived-from={policy.kind}", f"{POLICY_LABEL}.name={policy.name}"]
            if policy.namespace:
                labels.append(f"{POLICY_LABEL}.namespace={policy.namespace}")
            if policy.uid:
                labels.append(f"{POLICY_LABEL}.uid={policy.uid}")
            if policy.rule:
                labels.append(f"{RULE_LABEL}={policy.rule}")
            target.add(
                name=policy.name,
                namespace=policy.namespace,
                labels=labels,
                revision=policy.revision or row.policy_revision,
                kind=policy.kind,
            )

    def _summarise(self, flow: pb.Flow, row: Row, decision: Decision | None, *, ipv6: bool) -> None:
        request = self._dictionaries.requests[row.http]
        if isinstance(request, NameRecord):
            text = _name(flow, row, request)
        elif row.kind == Kind.HTTP and request is not None:
            number, port = (row.source, row.source_port) if row.reply else (row.destination, row.destination_port)
            server = self._dictionaries.parties[number] or Party(bytes(16))
            url = request_url(request, server, port)
            flow.l7.type = pb.RESPONSE if row.reply else pb.REQUEST
            flow.l7.http.method, flow.l7.http.url = request.method, url
            flow.l7.http.protocol = summary.protocol_name(request)
            text = summary.http(request, url)
            if row.reply:
                flow.l7.http.code, flow.l7.latency_ns = row.status, row.duration_us * 1000
                text = summary.http_response(request, url, row.status, row.duration_us)
        elif not flow.HasField("IP"):
            text = "Ethernet"
        else:
            text = summary.layer4(row.protocol, row.tcp_flags, row.source_port, row.destination_port, ipv6=ipv6)
        parts = [
            text,
            summary.change(row.kind, row.verdict),
            summary.refused(row.kind, row.verdict, row.drop_reason, decision),
            summary.counters(
                row.kind,
                (row.packets, row.reply_packets),
                (row.bytes, row.reply_bytes),
                row.rtt_us,
                row.duration_us,
            ),
        ]
        flow.Summary = "; ".join(part for part in parts if part)


def _name(flow: pb.Flow, row: Row, record: NameRecord) -> str:
    """A DNS message, or a TLS client's server name; the line about it."""
    if row.kind == Kind.TLS:
        name = record.query.rstrip(".")
        if name and name not in flow.destination_names:
            flow.destination_names.append(name)
        return summary.tls(record)
    dns = flow.l7.dns
    flow.l7.type = pb.RESPONSE if row.reply else pb.REQUEST
    dns.query, dns.observation_source = record.query, "kernel"
    dns.qtypes.append(summary.record_type(record.qtype))
    if not row.reply:
        return summary.dns_query(record)
    flow.l7.latency_ns = row.duration_us * 1000
    dns.rcode, dns.ttl = record.rcode, record.ttl
    dns.ips.extend(record.addresses)
    dns.cnames.extend(record.aliases)
    types = {"AAAA" if ":" in address else "A" for address in record.addresses}
    dns.rrtypes.extend(sorted(types | ({"CNAME"} if record.aliases else set())))
    return summary.dns_answer(record)


def _rendered(party: Party) -> tuple[pb.Endpoint, str, bool]:
    endpoint = pb.Endpoint(
        ID=party.endpoint_id,
        identity=party.identity,
        namespace=party.namespace,
        labels=party.labels,
        pod_name=party.pod,
        cluster_name=party.cluster,
    )
    if party.workload:
        endpoint.workloads.add(name=party.workload, kind=party.workload_kind)
    return endpoint, str(from_bytes(party.address)), not party.address.startswith(V4_MAPPED_PREFIX)


def set_time(target: Any, time_ns: int) -> None:
    """Fill a `google.protobuf.Timestamp`."""
    target.seconds, target.nanos = divmod(time_ns, NANOSECONDS)


def _details(row: Row, decision: Decision | None, process: ProcessRef | None) -> details_pb2.FlowDetails:
    """What the record counted, and what the decision lacked, and whose socket it was."""
    found = details_pb2.FlowDetails(kind=row.kind, **{name: getattr(row, name) for name in _COUNTERS})
    if decision is not None and not decision.matched:
        found.default_deny = True
        if decision.nearest is not None:
            found.nearest_rule = decision.nearest.rule.place
            found.nearest_failed.extend(decision.nearest.failed)
    if row.trace_high or row.trace_low:
        found.parent_span_id, found.trace_flags = f"{row.parent_span:016x}", row.trace_flags
    if process is not None:
        found.process.pid, found.process.name = process.pid, process.name
        found.process.executable, found.process.container = process.executable, process.container
    return found
