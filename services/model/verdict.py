"""Verdicts, directions, protocols and drop reasons: one list for Python and the flow API.

C has the same numbers (`bpf/lib/drop_reasons.h`), which a test compares.

Drop codes below 206 are the field's (Hubble API, 5.5); the project's own start at 220.
"""

from __future__ import annotations

from enum import IntEnum


class Direction(IntEnum):
    """Policy direction as seen by the endpoint; the numbers of Hubble's TrafficDirection."""

    INGRESS = 1
    EGRESS = 2


class Protocol(IntEnum):
    """IP protocol numbers; ANY is the wildcard of policy keys."""

    ANY = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


class DropReason(IntEnum):
    """Why a packet was dropped. There is no silent drop."""

    INVALID_SOURCE_MAC = 130
    INVALID_SOURCE_IP = 132
    POLICY_DENIED = 133
    INVALID_PACKET_DROPPED = 134
    CT_TRUNCATED_OR_INVALID_HEADER = 135
    CT_UNKNOWN_L4_PROTOCOL = 137
    UNSUPPORTED_L3_PROTOCOL = 139
    MISSED_TAIL_CALL = 140
    ERROR_WRITING_TO_PACKET = 141
    ERROR_RETRIEVING_TUNNEL_KEY = 147
    INVALID_GENEVE_OPTION = 149
    STALE_OR_UNROUTABLE_IP = 151
    CT_MAP_INSERTION_FAILED = 155
    IP_FRAGMENTATION_NOT_SUPPORTED = 157
    SERVICE_BACKEND_NOT_FOUND = 158
    NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT = 160
    REACHED_EDT_RATE_LIMITING_DROP_HORIZON = 162
    NO_MAPPING_FOR_NAT_MASQUERADE = 167
    """No port of the node's address is free."""
    UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE = 168
    FIB_LOOKUP_FAILED = 169
    UNKNOWN_SENDER = 172
    DENIED_BY_LB_SRC_RANGE_CHECK = 177
    POLICY_DENY = 181
    AUTH_REQUIRED = 189
    UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP = 193
    NO_EGRESS_GATEWAY = 194
    TTL_EXCEEDED = 196
    DROP_EP_NOT_READY = 203
    DROP_NO_EGRESS_IP = 204
    # The project's own.
    HTTP_DENIED = 220
    HTTP_MALFORMED = 221
    HTTP_NO_STATE = 222
    HTTP_OUT_OF_ORDER = 223
    HTTP_TOO_LARGE = 224
    HTTP_TLS = 225
    HTTP_HTTP2 = 226
    HTTP_CLOSED = 227
    DNS_DENIED = 230
    DNS_MALFORMED = 231
    DNS_UNSOLICITED = 232
    DNS_TOO_LARGE = 233
    DNS_NO_STATE = 234
    TLS_DENIED = 235
    TLS_MALFORMED = 236
    TLS_NO_STATE = 237
    TLS_OUT_OF_ORDER = 238
    DNS_CLOSED = 239
    CT_QUOTA_EXCEEDED = 240
    POLICY_MAP_FULL = 241
    PACKET_TOO_LARGE = 242
    """For the way there; who can be told is told what would fit."""
