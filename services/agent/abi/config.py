"""What differs between nodes (`bpf/lib/config.h`)."""

from __future__ import annotations

import ctypes
from enum import IntFlag

from services.agent.abi.layout import Address, Struct
from services.model.addresses import V4_MAPPED_PREFIX

HAIRPIN_IPV4 = V4_MAPPED_PREFIX + bytes([169, 254, 42, 1])
HAIRPIN_IPV6 = bytes.fromhex("fd63696c696174650000000000000001")
"""Source addresses of a pod's packets to itself through its own Service; they never leave the node."""


class ConfigFlags(IntFlag):
    """`enum config_flags`: what this node does."""

    MASQUERADE = 1
    """Pods' packets to the outside leave with the node's address."""
    NORTH_SOUTH = 2
    """Services are reached from outside through this node."""
    SOCKET_LB = 256
    """Sockets may have been connected to Services: flows name them."""
    NATIVE_ROUTING = 4
    """Pods' packets travel between nodes as they are."""
    HTTP_VISIBLE = 512
    """Requests to some ports are told without any policy (map `http_visible`)."""
    EGRESS_GATEWAY = 8
    """Some pods leave the cluster by chosen nodes (`abi.egress`)."""
    PACING = 16
    """The node's devices queue by departure time."""


class DatapathConfig(Struct):
    """`struct datapath_config`, 96 bytes, the only entry of map `config`."""

    _fields_ = [
        ("update_interval_ns", ctypes.c_uint64),
        ("overlay_ifindex", ctypes.c_uint32),
        ("world_ipv4", ctypes.c_uint32),
        ("world_ipv6", ctypes.c_uint32),
        ("tunnel_port", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("path_mtu", ctypes.c_uint32),
        ("ct_queue_mask", ctypes.c_uint32),
        ("tunnel_address", Address),
        ("hairpin_ipv4", Address),
        ("hairpin_ipv6", Address),
        ("nat_port_min", ctypes.c_uint16),
        ("nat_port_max", ctypes.c_uint16),
        ("dsr_port", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("netns", ctypes.c_uint64),
    ]
