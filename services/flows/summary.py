"""The one line about a flow that people read: `Summary` in the Hubble API.

The beginning is Hubble's own text; what the datapath knows beyond it (which policy, how much, how long) follows
after a semicolon.
"""

from __future__ import annotations

from services.flows.columns import Kind
from services.flows.entries import Decision, HttpRequest, NameRecord
from services.flows.facets import AUDIT, DROPPED, POLICY_DROPS
from services.model.verdict import DropReason, Protocol

_FLAGS = (("SYN", 2), ("ACK", 16), ("RST", 4), ("FIN", 1), ("PSH", 8), ("URG", 32), ("ECE", 64), ("CWR", 128))

_ICMP4 = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    4: "SourceQuench",
    5: "Redirect",
    8: "EchoRequest",
    9: "RouterAdvertisement",
    10: "RouterSolicitation",
    11: "TimeExceeded",
    12: "ParameterProblem",
    13: "TimestampRequest",
    14: "TimestampReply",
    15: "InfoRequest",
    16: "InfoReply",
    17: "AddressMaskRequest",
    18: "AddressMaskReply",
}
_ICMP4_CODES = {
    3: ("Net", "Host", "Protocol", "Port", "FragmentationNeeded", "SourceRoutingFailed", "NetUnknown", "HostUnknown",
        "SourceIsolated", "NetAdminProhibited", "HostAdminProhibited", "NetTOS", "HostTOS", "CommAdminProhibited",
        "HostPrecedence", "PrecedenceCutoff"),
    5: ("Net", "Host", "TOS+Net", "TOS+Host"),
    11: ("TTLExceeded", "FragmentReassemblyTimeExceeded"),
    12: ("PointerIndicatesError", "MissingOption", "BadLength"),
}  # fmt: skip
_ICMP6 = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
    137: "Redirect",
}
_ICMP6_CODES = {
    1: ("NoRouteToDst", "AdminProhibited", "BeyondScopeOfSrc", "AddressUnreachable", "PortUnreachable",
        "SrcAddressFailedPolicy", "RejectRouteToDst"),
    3: ("HopLimitExceeded", "FragmentReassemblyTimeExceeded"),
    4: ("ErroneousHeader", "UnrecognizedNextHeader", "UnrecognizedIPv6Option"),
}  # fmt: skip

_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR",
    41: "OPT", 64: "SVCB", 65: "HTTPS", 255: "ANY", 257: "CAA",
}  # fmt: skip
RCODES = {
    1: "Format Error", 2: "Server Failure", 3: "Non-Existent Domain", 4: "Not Implemented", 5: "Query Refused",
    6: "Name Exists when it should not", 7: "RR Set Exists when it should not", 8: "RR Set that should exist does not",
    9: "Not Authorized", 10: "Name not contained in zone",
}  # fmt: skip
_REFUSALS = {
    DropReason.HTTP_DENIED: "HTTP request not allowed",
    DropReason.HTTP_MALFORMED: "malformed HTTP",
    DropReason.HTTP_NO_STATE: "HTTP connection of unknown state",
    DropReason.HTTP_OUT_OF_ORDER: "HTTP segments out of order",
    DropReason.HTTP_TOO_LARGE: "HTTP request head too large",
    DropReason.HTTP_TLS: "TLS where HTTP rules apply",
    DropReason.HTTP_HTTP2: "HTTP/2 where HTTP/1 rules apply",
    DropReason.PACKET_TOO_LARGE: "too large for its way, the sender is told what fits",
    DropReason.POLICY_MAP_FULL: "the policy map has no room for the endpoint's policy",
    DropReason.HTTP_CLOSED: "HTTP connection already refused",
    DropReason.DNS_DENIED: "DNS name not allowed",
    DropReason.DNS_MALFORMED: "malformed DNS message",
    DropReason.DNS_UNSOLICITED: "DNS answer that nobody asked for",
    DropReason.DNS_TOO_LARGE: "DNS message too large",
    DropReason.DNS_NO_STATE: "DNS stream of unknown state",
    DropReason.TLS_DENIED: "TLS server name not allowed",
    DropReason.TLS_MALFORMED: "no TLS where server names are asked for",
    DropReason.TLS_NO_STATE: "TLS connection of unknown state",
    DropReason.TLS_OUT_OF_ORDER: "TLS segments out of order",
    DropReason.DNS_CLOSED: "DNS connection already refused",
    DropReason.CT_QUOTA_EXCEEDED: "the pod has as many connections as it may",
}


def tcp_flag_names(flags: int) -> list[str]:
    """Names of the flags that are set, in Hubble's order."""
    return [name for name, bit in _FLAGS if flags & bit]


def icmp_text(kind: int, code: int, *, ipv6: bool) -> str:
    """`EchoRequest`, `DestinationUnreachable(Port)`."""
    name = (_ICMP6 if ipv6 else _ICMP4).get(kind)
    if name is None:
        return f"{kind}({code})"
    known = (_ICMP6_CODES if ipv6 else _ICMP4_CODES).get(kind, ())
    if code < len(known):
        return f"{name}({known[code]})"
    return name if not code and not known else f"{name}(Code: {code})"


def layer4(protocol: int, flags: int, source_port: int, destination_port: int, *, ipv6: bool) -> str:
    """Hubble's text for a packet."""
    match protocol:
        case Protocol.TCP:
            return f"TCP Flags: {', '.join(tcp_flag_names(flags))}" if flags else "TCP"
        case Protocol.UDP:
            return "UDP"
        case Protocol.SCTP:
            return "SCTP"
        case Protocol.ICMP:
            return f"ICMPv4 {icmp_text(source_port, destination_port, ipv6=False)}"
        case Protocol.ICMPV6:
            return f"ICMPv6 {icmp_text(source_port, destination_port, ipv6=True)}"
        case _:
            return "IPv6" if ipv6 else "IPv4"


def record_type(number: int) -> str:
    """The name of a DNS record type."""
    return _TYPES.get(number, "Unknown")


def dns_query(record: NameRecord) -> str:
    """`DNS Query example.com. A`"""
    return f"DNS Query {record.query} {record_type(record.qtype)}"


def dns_answer(record: NameRecord) -> str:
    """`DNS Answer "192.0.2.1" TTL: 30 (Query example.com. A)`"""
    if record.rcode:
        answer = f"RCode: {RCODES.get(record.rcode, record.rcode)}"
    else:
        more = f",… {record.answers} in all" if record.answers > len(record.addresses) else ""
        answer = f'"{",".join(record.addresses)}{more}"'
        if record.aliases:
            answer += f' CNAMEs: "{",".join(record.aliases)}"'
    return f"DNS Answer {answer} TTL: {record.ttl} (Query {record.query} {record_type(record.qtype)})"


def tls(record: NameRecord) -> str:
    """`TLS server name example.com`"""
    return f"TLS server name {record.query.rstrip('.')}" if record.query else "TLS without a server name"


def http(request: HttpRequest, url: str) -> str:
    """`HTTP/1.1 GET http://…`"""
    cut = f" (path cut, {request.path_length} bytes)" if request.path_length > len(request.path) else ""
    return f"{protocol_name(request)} {request.method} {url}{cut}"


def http_response(request: HttpRequest, url: str, status: int, latency_us: int) -> str:
    """`HTTP/1.1 200 3ms (GET http://…)`"""
    return f"{protocol_name(request)} {status} {latency_us // 1000}ms ({request.method} {url})"


def protocol_name(request: HttpRequest) -> str:
    """`HTTP/1.1`; `HTTP/1` for 1.0, as Hubble has it."""
    return {10: "HTTP/1", 11: "HTTP/1.1", 20: "HTTP/2"}.get(request.version, "HTTP")


def refused(kind: int, verdict: int, reason: int, decision: Decision | None) -> str:
    """What policy did, or of an endpoint that is only audited, what it would have done; empty where it let pass."""
    if verdict == AUDIT:
        return f"audit: would be refused: {refusal(kind, reason, decision)}"
    return refusal(kind, reason, decision) if verdict == DROPPED else ""


def refusal(kind: int, reason: int, decision: Decision | None) -> str:
    """Why a packet or a request was refused, and by whom; empty where its drop reason says it all."""
    names = ", ".join(policy.place for policy in decision.policies) if decision else ""
    if reason == DropReason.POLICY_MAP_FULL:
        return _REFUSALS[DropReason.POLICY_MAP_FULL]  # by no rule of anybody's
    if kind == Kind.HTTP or reason in _REFUSALS:
        text = _REFUSALS.get(DropReason(reason), "") if reason in _REFUSALS else "HTTP request not allowed"
        return f"{text} by {names}" if names else text
    if reason not in POLICY_DROPS:
        return ""
    if decision is not None and decision.matched:
        return f"denied by {names}"
    text = f"default deny by {names}" if names else "default deny"
    return f"{text}, nearest rule {decision.nearest}" if decision and decision.nearest else text


def counters(kind: int, packets: tuple[int, int], octets: tuple[int, int], rtt_us: int, duration_us: int) -> str:
    """What a connection has carried so far; empty for rows that are no connection records."""
    if kind not in (Kind.UPDATE, Kind.CLOSE):
        return ""
    state = "closed after" if kind == Kind.CLOSE else "open for"
    text = f"{state} {duration_us / 1e6:.3f}s, {packets[0]}/{packets[1]} packets, {octets[0]}/{octets[1]} bytes"
    return f"{text}, RTT {rtt_us / 1e3:.3f}ms" if rtt_us else text


def change(kind: int, verdict: int) -> str:
    """Said of established connections that met a changed policy."""
    if kind != Kind.VERDICT_CHANGE:
        return ""
    if verdict == AUDIT:
        return "policy changed"
    return "policy changed, connection refused" if verdict == DROPPED else "policy changed, connection allowed"
