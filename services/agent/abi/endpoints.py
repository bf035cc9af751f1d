"""Local endpoints (`bpf/lib/endpoints.h`): what differs between endpoints is here, never in code.

Three maps: `endpoints` (array, endpoint id -> info, the one place that is written when something changes),
`endpoint_addrs` (hash, 16-byte address -> endpoint id as u32) and `endpoint_ifs` (hash, ifindex -> endpoint id).
"""

from __future__ import annotations

import ctypes
from enum import IntFlag

from services.agent.abi.layout import Address, Struct

Mac = ctypes.c_uint8 * 6

MAX_ENDPOINTS = 4096
HOST_ENDPOINT = MAX_ENDPOINTS - 1
"""The node itself (`bpf/lib/hostfw.h`): there only while a host policy selects it."""


class EndpointFlags(IntFlag):
    """`ENDPOINT_F_*`."""

    AUDIT = 1
    """Policy is asked and told, but nothing is refused."""
    REFINE_INGRESS = 2
    """Rules tell pods of one identity apart (`abi.refined`)."""
    REFINE_EGRESS = 4
    INGRESS_RATE = 32
    """Packets for it queue on the node's side of its interface."""
    FQDN = 8
    """Has toFQDNs rules: destinations in the outside world are looked up by name (`abi.names`)."""
    VISIBLE = 64
    """Requests on some of its ports are told without any policy (map `http_visible_pods`)."""


class EndpointInfo(Struct):
    """`struct endpoint_info`, 64 bytes. An all-zero entry (id 0) is no endpoint: its packets are dropped (203)."""

    _fields_ = [
        ("ifindex", ctypes.c_uint32),
        ("identity", ctypes.c_uint32),
        ("policy_id", ctypes.c_uint32),
        ("policy_revision", ctypes.c_uint32),
        ("id", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("mac", Mac),
        ("node_mac", Mac),
        ("ipv4", Address),
        ("ipv6", Address),
    ]
