"""FlowFilters on messages (the Hubble API's reference, section 3): for flows that come from files, not from a store.

The twin of `services.flows.filters`, which decides on columns; patterns, selectors and errors are the same code.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from services.common.pb.flow import flow_pb2 as pb
from services.flows import filters as column_filters
from services.flows.filters.base import FilterError, regex
from services.flows.filters.cel import holds
from services.flows.filters.names import fqdn_pattern, namespaced, node_matcher
from services.flows.filters.selector import selector

Test = Callable[[pb.Flow], bool]
L4_OF = {"icmp": ("ICMPv4", "ICMPv6"), "icmpv4": ("ICMPv4",), "icmpv6": ("ICMPv6",)} | {
    name: (name.upper(),) for name in ("tcp", "udp", "sctp", "vrrp", "igmp")
}


class MessageFilters:
    """An allow list and a deny list; raises `FilterError` where the column filters do."""

    def __init__(self, allow: Iterable[pb.FlowFilter] = (), deny: Iterable[pb.FlowFilter] = ()) -> None:
        allow, deny = list(allow), list(deny)
        column_filters.Filters(allow, deny)  # the same refusals, in the same words
        self._allow, self._deny = [_build(each) for each in allow], [_build(each) for each in deny]

    def match(self, flow: pb.Flow) -> bool:
        """Does a flow pass?"""
        allowed = not self._allow or any(all(test(flow) for test in tests) for tests in self._allow)
        return allowed and not any(all(test(flow) for test in tests) for tests in self._deny)


def _build(given: pb.FlowFilter) -> list[Test]:
    found = [_MAKERS[field.name](list(values)) for field, values in given.ListFields() if field.name in _MAKERS]
    for side in ("source", "destination"):
        for name, make in _SIDED.items():
            values = list(getattr(given, f"{side}_{name}"))
            if values:
                found.append(make(values, side))
    if given.experimental.cel_expression:
        found.append(holds(list(given.experimental.cel_expression)))
    return found


def _endpoint(flow: pb.Flow, side: str) -> pb.Endpoint:
    found: pb.Endpoint = getattr(flow, side)
    return found


def _address(values: Sequence[str], read: Callable[[pb.Flow], str]) -> Test:
    networks = [ipaddress.ip_network(value, strict=False) for value in values if "/" in value]
    texts = frozenset(value for value in values if "/" not in value)

    def test(flow: pb.Flow) -> bool:
        text = read(flow)
        if not text or text in texts:
            return bool(text)
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in networks)

    return test


def _named(values: list[str], side: str, what: str) -> Test:
    matches = namespaced(values, f"{side}_{what}")
    if what == "pod":
        return lambda flow: matches(_endpoint(flow, side).namespace, _endpoint(flow, side).pod_name)
    return lambda flow: matches(getattr(flow, f"{side}_service").namespace, getattr(flow, f"{side}_service").name)


def _fqdn(values: list[str], side: str) -> Test:
    patterns = [fqdn_pattern(value, f"{side}_fqdn") for value in values]
    return lambda flow: any(p.fullmatch(name) for name in getattr(flow, f"{side}_names") for p in patterns)


def _labels(values: list[str], side: str) -> Test:
    selects = selector(values, f"{side}_label")
    return lambda flow: selects(tuple(_endpoint(flow, side).labels))


def _port(values: list[str], side: str) -> Test:
    wanted = frozenset(map(int, values))

    def test(flow: pb.Flow) -> bool:
        protocol = flow.l4.WhichOneof("protocol")
        return protocol in ("TCP", "UDP", "SCTP") and getattr(getattr(flow.l4, protocol), f"{side}_port") in wanted

    return test


def _workload(values: list[pb.Workload], side: str) -> Test:
    def equal(wanted: pb.Workload, given: pb.Workload) -> bool:
        return wanted.name in ("", given.name) and wanted.kind in ("", given.kind)

    return lambda flow: any(equal(w, given) for given in _endpoint(flow, side).workloads for w in values)


def _identity(values: list[int], side: str) -> Test:
    def test(flow: pb.Flow) -> bool:
        there = flow.HasField("source") if side == "source" else flow.HasField("destination")
        return there and _endpoint(flow, side).identity in values

    return test


_SIDED: dict[str, Callable[[list[Any], str], Test]] = {
    "ip": lambda values, side: _address(values, lambda flow: str(getattr(flow.IP, side))),
    "pod": lambda values, side: _named(values, side, "pod"),
    "service": lambda values, side: _named(values, side, "service"),
    "fqdn": _fqdn,
    "label": _labels,
    "port": _port,
    "workload": _workload,
    "identity": _identity,
    "cluster_name": lambda values, side: lambda flow: _endpoint(flow, side).cluster_name in values,
}


def _one_of(read: Callable[[pb.Flow], Any]) -> Callable[[list[Any]], Test]:
    return lambda values: lambda flow: read(flow) in values


def _protocol(values: list[str]) -> Test:
    names = [value.lower() for value in values]
    members = frozenset(member for name in names for member in L4_OF.get(name, ()))
    return lambda flow: flow.l4.WhichOneof("protocol") in members or flow.l7.WhichOneof("record") in names


def _tcp_flags(values: list[pb.TCPFlags]) -> Test:
    wanted = [[field.name for field, _ in each.ListFields()] for each in values]

    def test(flow: pb.Flow) -> bool:
        given = flow.l4.TCP.flags
        return flow.l4.TCP.HasField("flags") and any(all(getattr(given, n) for n in names) for names in wanted)

    return test


def _event_type(values: list[pb.EventTypeFilter]) -> Test:
    def test(flow: pb.Flow) -> bool:
        given = flow.event_type
        return flow.HasField("event_type") and any(
            each.type in (0, given.type) and (not each.match_sub_type or each.sub_type == given.sub_type)
            for each in values
        )

    return test


def _reply(values: list[bool]) -> Test:
    def test(flow: pb.Flow) -> bool:
        if flow.HasField("is_reply"):
            return flow.is_reply.value in values
        return flow.verdict == pb.DROPPED and False in values

    return test


def _interface(values: list[pb.NetworkInterface]) -> Test:
    def test(flow: pb.Flow) -> bool:
        given = flow.interface
        return flow.HasField("interface") and any(
            each.index in (0, given.index) and each.name in ("", given.name) for each in values
        )

    return test


def _status(values: list[str]) -> Test:
    pattern = re.compile("|".join(value.replace("+", "[0-9]*") for value in values))
    return lambda flow: bool(flow.l7.http.code) and bool(pattern.fullmatch(f"{flow.l7.http.code:03d}"))


def _method(values: list[str]) -> Test:
    wanted = frozenset(value.lower() for value in values)
    return lambda flow: bool(flow.l7.http.method) and flow.l7.http.method.lower() in wanted


def _path(values: list[str]) -> Test:
    patterns = [regex(value, "http_path") for value in values]

    def test(flow: pb.Flow) -> bool:
        try:
            path = urlsplit(flow.l7.http.url).path
        except ValueError:
            return False
        return path.startswith("/") and any(pattern.search(unquote(path)) for pattern in patterns)

    return test


def _search(field: str, read: Callable[[pb.Flow], str]) -> Callable[[list[str]], Test]:
    def make(values: list[str]) -> Test:
        patterns = [regex(value, field) for value in values]
        return lambda flow: bool(read(flow)) and any(pattern.search(read(flow)) for pattern in patterns)

    return make


def _headers(values: list[pb.HTTPHeader]) -> Test:
    wanted = {(each.key, each.value) for each in values}
    return lambda flow: any((each.key, each.value) in wanted for each in flow.l7.http.headers)


def _node_labels(values: list[str]) -> Test:
    selects = selector(values, "node_labels")
    return lambda flow: selects(tuple(flow.node_labels))


def _node_name(values: list[str]) -> Test:
    matches = node_matcher(values, "node_name")
    return lambda flow: bool(flow.node_name) and matches(flow.node_name)


_MAKERS: dict[str, Callable[[list[Any]], Test]] = {
    "uuid": _one_of(lambda flow: flow.uuid),
    "source_ip_xlated": lambda values: _address(values, lambda flow: flow.IP.source_xlated),
    "verdict": _one_of(lambda flow: flow.verdict),
    "traffic_direction": _one_of(lambda flow: flow.traffic_direction),
    "ip_version": _one_of(lambda flow: flow.IP.ipVersion),
    "encrypted": _one_of(lambda flow: flow.IP.encrypted),
    "trace_id": _one_of(lambda flow: flow.trace_context.parent.trace_id),
    "ip_trace_id": _one_of(lambda flow: flow.ip_trace_id.trace_id),
    "drop_reason_desc": lambda values: lambda flow: flow.verdict == pb.DROPPED and flow.drop_reason_desc in values,
    "protocol": _protocol,
    "tcp_flags": _tcp_flags,
    "event_type": _event_type,
    "reply": _reply,
    "interface": _interface,
    "http_status_code": _status,
    "http_method": _method,
    "http_path": _path,
    "http_url": _search("http_url", lambda flow: flow.l7.http.url),
    "http_header": _headers,
    "dns_query": _search("dns_query", lambda flow: flow.l7.dns.query),
    "node_labels": _node_labels,
    "node_name": _node_name,
}

__all__ = ["FilterError", "MessageFilters"]
