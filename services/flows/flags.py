"""Filter flags, as `ciliate observe` and the web page have them -> Hubble FlowFilters. Pure.

As in the field's tool: repeating a flag means "or", different flags mean "and", and `--not` in front of a flag turns
it into an exclusion. A two-sided flag (`--pod`) matches either end, so there are two filters, or-ed: one holds the
source's field, the other the destination's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2
from services.model.identity import Reserved

NOT = "\0"
"""Stands in front of a value whose flag had `--not` before it; no argument of a program can hold it."""

_INT32 = (1 << 31) - 1
EVENT_TYPES = {
    "drop": 1,
    "debug": 2,
    "capture": 3,
    "trace": 4,
    "policy-verdict": 5,
    "trace-sock": 7,
    "l7": 129,
    "agent": 130,
}
TRACE_POINTS = (
    "to-endpoint",
    "to-proxy",
    "to-host",
    "to-stack",
    "to-overlay",
    "from-endpoint",
    "from-proxy",
    "from-host",
    "from-stack",
    "from-overlay",
    "from-network",
    "to-network",
    "from-crypto",
    "to-crypto",
)


class Side(enum.Enum):
    """Which of the two filters a flag goes to."""

    BOTH = enum.auto()
    FROM = enum.auto()
    TO = enum.auto()
    FLOW = enum.auto()
    """A property of the flow, not of an end: the same in both filters."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A filter flag: its name without dashes, where it goes, the field of FlowFilter, how a value is read."""

    name: str
    side: Side
    field: str
    help: str
    read: Callable[[str, str], Any] = lambda text, _flag: text
    short: str = ""


def _two_sided(name: str, field: str, what: str, read: Any = None, short: str = "") -> list[Flag]:
    reading = {"read": read} if read else {}
    return [
        Flag(name, Side.BOTH, field, f"flows from or to {what}", short=short, **reading),
        Flag(f"from-{name}", Side.FROM, field, f"flows from {what}", **reading),
        Flag(f"to-{name}", Side.TO, field, f"flows to {what}", **reading),
    ]


def _whole(text: str, most: int) -> int | None:
    """The number that decimal digits say; None for anything else, and above `most` (below 10**20)."""
    found = int(text) if text.isdecimal() and len(text) <= 20 else None
    return None if found is None or found > most else found


def _number(text: str, flag: str) -> str:
    if _whole(text, 65535) is None:
        raise Invalid(f"--{flag}: {text!r} is no port; use 0 to 65535")
    return text


def _identity(text: str, flag: str) -> int:
    number = _whole(text, (1 << 32) - 1)
    if number is not None:
        return number
    try:
        return int(Reserved[text.removeprefix("reserved:").replace("-", "_").upper()])
    except KeyError as error:
        names = ", ".join(each.name.lower().replace("_", "-") for each in Reserved)
        raise Invalid(f"--{flag}: {text!r} is no identity; use a number below 2**32 or one of {names}") from error


def _enum(kind: Any) -> Callable[[str, str], int]:
    def read(text: str, flag: str) -> int:
        name = text.upper().replace("-", "_")
        if name not in kind.keys():  # noqa: SIM118 - a protobuf enum wrapper is no mapping
            raise Invalid(f"--{flag}: {text!r} is not known; use one of {', '.join(kind.keys())}")
        return int(kind.Value(name))

    return read


def _event_type(text: str, flag: str) -> flow_pb2.EventTypeFilter:
    name, colon, sub = text.partition(":")
    number = EVENT_TYPES.get(name, _whole(name, _INT32))
    if number is None:
        raise Invalid(f"--{flag}: {name!r} is no event type; use one of {', '.join(EVENT_TYPES)}")
    found = flow_pb2.EventTypeFilter(type=number)
    if colon:
        sub_number = TRACE_POINTS.index(sub) if sub in TRACE_POINTS else _whole(sub, _INT32)
        if sub_number is None:
            raise Invalid(f"--{flag}: {sub!r} is no sub-type; use a number or one of {', '.join(TRACE_POINTS)}")
        found.match_sub_type, found.sub_type = True, sub_number
    return found


def _tcp_flags(text: str, flag: str) -> flow_pb2.TCPFlags:
    known = [field.name for field in flow_pb2.TCPFlags.DESCRIPTOR.fields]
    names = [name.upper() for name in text.split(",") if name]
    if wrong := [name for name in names if name not in known]:
        raise Invalid(f"--{flag}: {wrong[0]!r} is no TCP flag; use {', '.join(known).lower()}")
    return flow_pb2.TCPFlags(**dict.fromkeys(names, True))


def _header(text: str, flag: str) -> flow_pb2.HTTPHeader:
    key, colon, value = text.partition(":")
    if not colon:
        raise Invalid(f"--{flag}: {text!r}: write it as key:value")
    return flow_pb2.HTTPHeader(key=key, value=value.strip())


def _workload(text: str, _flag: str) -> flow_pb2.Workload:
    kind, slash, name = text.rpartition("/")
    return flow_pb2.Workload(kind=kind if slash else "", name=name)


def _switch(text: str, flag: str) -> bool:
    if text not in ("true", "false"):
        raise Invalid(f"--{flag}: {text!r}: takes no value, or true or false")
    return text == "true"


def _ip_version(text: str, flag: str) -> int:
    names = {"none": flow_pb2.IP_NOT_USED, "v4": flow_pb2.IPv4, "4": flow_pb2.IPv4, "v6": flow_pb2.IPv6}
    found = (names | {"6": flow_pb2.IPv6}).get(text.lower().removeprefix("ip"))
    if found is None:
        raise Invalid(f"--{flag}: {text!r} is not known; use v4, v6 or none")
    return int(found)


def _positive(text: str, flag: str) -> int:
    number = _whole(text, (1 << 64) - 1)
    if not number:
        raise Invalid(f"--{flag}: {text!r}: must be a number above 0")
    return number


def _interface(text: str, _flag: str) -> flow_pb2.NetworkInterface:
    return flow_pb2.NetworkInterface(name=text)


FLAGS: tuple[Flag, ...] = (
    *_two_sided("pod", "pod", "pods whose [namespace/]name starts so"),
    *_two_sided("namespace", "namespace", "pods of a namespace", short="n"),
    *_two_sided("label", "label", "endpoints with a label selector (app=web, 'k in (a, b)')", short="l"),
    *_two_sided("ip", "ip", "an address or CIDR"),
    *_two_sided("port", "port", "a port", _number),
    *_two_sided("identity", "identity", "a security identity, by number or reserved name", _identity),
    *_two_sided("service", "service", "a Service, [namespace/]name"),
    *_two_sided("workload", "workload", "a workload, [Kind/]name", _workload),
    *_two_sided("fqdn", "fqdn", "a DNS name ('*' matches any part)"),
    Flag("verdict", Side.FLOW, "verdict", "FORWARDED, DROPPED, ...", _enum(flow_pb2.Verdict)),
    Flag("drop-reason-desc", Side.FLOW, "drop_reason_desc", "e.g. POLICY_DENIED", _enum(flow_pb2.DropReason)),
    Flag("type", Side.FLOW, "event_type", "drop, trace[:to-endpoint], policy-verdict, l7", _event_type, "t"),
    Flag("protocol", Side.FLOW, "protocol", "tcp, udp, icmp, icmpv6, sctp, http, dns"),
    Flag("traffic-direction", Side.FLOW, "traffic_direction", "ingress or egress", _enum(flow_pb2.TrafficDirection)),
    Flag("http-method", Side.FLOW, "http_method", "GET, POST, ..."),
    Flag("http-path", Side.FLOW, "http_path", "a regular expression"),
    Flag("http-url", Side.FLOW, "http_url", "a regular expression"),
    Flag("http-status", Side.FLOW, "http_status_code", "404, 5+"),
    Flag("http-header", Side.FLOW, "http_header", "key:value", _header),
    Flag("tcp-flags", Side.FLOW, "tcp_flags", "all of syn,ack,...", _tcp_flags),
    Flag("node-name", Side.FLOW, "node_name", "nodes ('*' matches any part)"),
    Flag("uuid", Side.FLOW, "uuid", "one flow"),
    *_two_sided("cluster", "cluster_name", "a cluster"),
    *_two_sided("all-namespaces", "all_namespaces", "pods or Services of whatever namespace", _switch, short="A"),
    Flag("node-label", Side.FLOW, "node_labels", "nodes with a label selector"),
    Flag("ip-version", Side.FLOW, "ip_version", "v4, v6 or none; also -4, -6", _ip_version),
    Flag("snat-ip", Side.FLOW, "source_ip_xlated", "an address that the source was translated to, or a CIDR"),
    Flag("reply", Side.FLOW, "reply", "replies; --not-reply for what is none", _switch),
    Flag("encrypted", Side.FLOW, "encrypted", "encrypted on the way; --unencrypted for what is not", _switch),
    Flag("interface", Side.FLOW, "interface", "a network interface", _interface),
    Flag("trace-id", Side.FLOW, "trace_id", "a W3C trace"),
    Flag("ip-trace-id", Side.FLOW, "ip_trace_id", "a trace in an IP option", _positive),
    Flag("cel-expression", Side.FLOW, "experimental.cel_expression", "a CEL expression on _flow, of type flow.Flow"),
)
BY_NAME = {flag.name: flag for flag in FLAGS}


@dataclass(frozen=True, slots=True)
class Filters:
    """What to ask for: any of `allow` (all flows where it is empty), none of `deny`."""

    allow: tuple[flow_pb2.FlowFilter, ...]
    deny: tuple[flow_pb2.FlowFilter, ...]


def build(values: Mapping[str, Sequence[str]]) -> Filters:
    """Filters for flag values by flag name; a value that starts with `NOT` excludes. Raises `Invalid`."""
    allowed = {name: [text for text in texts if not text.startswith(NOT)] for name, texts in values.items()}
    denied = {name: [text[1:] for text in texts if text.startswith(NOT)] for name, texts in values.items()}
    return Filters(_pair(allowed), _pair(denied))


def _pair(values: Mapping[str, Sequence[str]]) -> tuple[flow_pb2.FlowFilter, ...]:
    left, right = flow_pb2.FlowFilter(), flow_pb2.FlowFilter()
    for name, texts in _with_namespaces(values).items():
        flag = BY_NAME[name]
        for text in texts:
            value = flag.read(text, flag.name)
            if flag.side in (Side.BOTH, Side.FROM):
                _add(left, f"source_{flag.field}", value)
            if flag.side is Side.FROM:
                _add(right, f"source_{flag.field}", value)
            if flag.side in (Side.BOTH, Side.TO):
                _add(right, f"destination_{flag.field}", value)
            if flag.side is Side.TO:
                _add(left, f"destination_{flag.field}", value)
            if flag.side is Side.FLOW:
                _add(left, flag.field, value)
                _add(right, flag.field, value)
    if left == flow_pb2.FlowFilter() and right == flow_pb2.FlowFilter():
        return ()
    return (left,) if left == right else (left, right)


def _add(to: flow_pb2.FlowFilter, field: str, value: Any) -> None:
    outer, _, inner = field.rpartition(".")
    getattr(getattr(to, outer) if outer else to, inner).append(value)


def _with_namespaces(values: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """A namespace is a prefix of pod and Service names; alone it means every pod in it. All namespaces are the empty
    prefix."""
    found = {name: list(texts) for name, texts in values.items() if texts}
    for side in ("", "from-", "to-"):
        namespaces = found.pop(f"{side}namespace", [])
        if "true" in found.pop(f"{side}all-namespaces", []):
            if namespaces:
                raise Invalid(f"--{side}namespace: cannot be combined with --{side}all-namespaces")
            namespaces = [""]
        if len(namespaces) > 1 and any(found.get(f"{side}{kind}") for kind in ("pod", "service")):
            raise Invalid(f"--{side}namespace: give one namespace together with --{side}pod or --{side}service")
        named = False
        for kind in ("pod", "service"):
            texts = found.get(f"{side}{kind}", [])
            if namespaces and texts:
                found[f"{side}{kind}"] = [text if "/" in text else f"{namespaces[0]}/{text}" for text in texts]
                named = True
        if namespaces and not named:
            found.setdefault(f"{side}pod", []).extend(f"{namespace}/" for namespace in namespaces)
    return found
