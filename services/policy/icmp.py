"""Reads `icmps` elements: ICMP types by number or by the names of their family (policy-semantics 2.14)."""

from __future__ import annotations

from typing import Any

from services.model.verdict import Protocol
from services.policy.reader import Reader, describe, join, nearest, present
from services.policy.rules import Traffic

FIELD_FIELDS = frozenset({"family", "type"})
MAX_FIELDS = 40

IPV4_TYPES = {
    "EchoReply": 0,
    "DestinationUnreachable": 3,
    "Redirect": 5,
    "Echo": 8,
    "EchoRequest": 8,
    "RouterAdvertisement": 9,
    "RouterSelection": 10,
    "TimeExceeded": 11,
    "ParameterProblem": 12,
    "Timestamp": 13,
    "TimestampReply": 14,
    "Photuris": 40,
    "ExtendedEchoRequest": 42,
    "ExtendedEchoReply": 43,
}
IPV6_TYPES = {
    "DestinationUnreachable": 1,
    "PacketTooBig": 2,
    "TimeExceeded": 3,
    "ParameterProblem": 4,
    "EchoRequest": 128,
    "EchoReply": 129,
    "MulticastListenerQuery": 130,
    "MulticastListenerReport": 131,
    "MulticastListenerDone": 132,
    "RouterSolicitation": 133,
    "RouterAdvertisement": 134,
    "NeighborSolicitation": 135,
    "NeighborAdvertisement": 136,
    "RedirectMessage": 137,
    "RouterRenumbering": 138,
    "ICMPNodeInformationQuery": 139,
    "ICMPNodeInformationResponse": 140,
    "InverseNeighborDiscoverySolicitation": 141,
    "InverseNeighborDiscoveryAdvertisement": 142,
    "HomeAgentAddressDiscoveryRequest": 144,
    "HomeAgentAddressDiscoveryReply": 145,
    "MobilePrefixSolicitation": 146,
    "MobilePrefixAdvertisement": 147,
    "DuplicateAddressRequestCodeSuffix": 157,
    "DuplicateAddressConfirmationCodeSuffix": 158,
    "ExtendedEchoRequest": 160,
    "ExtendedEchoReply": 161,
}
FAMILIES = {"IPv4": (Protocol.ICMP, IPV4_TYPES), "IPv6": (Protocol.ICMPV6, IPV6_TYPES)}


def read_icmps(reader: Reader, document: Any, path: str) -> list[Traffic]:
    """The ICMP types of one element."""
    body = reader.mapping(document, path, frozenset({"fields"}))
    found: list[Traffic] = []
    for at, element in reader.items(body, "fields", path, limit=MAX_FIELDS):
        fields = reader.mapping(element, at, FIELD_FIELDS)
        family = reader.text(fields.get("family"), join(at, "family"), "IPv4") or "IPv4"
        if family not in FAMILIES:
            reader.report(join(at, "family"), f"{family[:20]!r} is not IPv4 or IPv6")
            continue
        protocol, names = FAMILIES[family]
        number = _read_type(reader, fields.get("type"), join(at, "type"), family, names)
        if number is not None:
            found.append(Traffic(protocol, number, number))
    if not present(body, "fields"):
        reader.warn(path, "has no fields and matches nothing")
    return found


def _read_type(reader: Reader, value: Any, path: str, family: str, names: dict[str, int]) -> int | None:
    if isinstance(value, str):
        if value.isascii() and value.isdigit():
            return reader.integer(int(value[:6]), path, 0, 255)
        if value not in names:
            reader.report(path, f"{value[:60]!r} is no ICMP type of {family}{nearest(value, frozenset(names))}")
            return None
        return names[value]
    if value is None:
        reader.report(path, f"is missing; give a number from 0 to 255 or a name, not {describe(value)}")
        return None
    return reader.integer(value, path, 0, 255)
