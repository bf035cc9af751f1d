"""Policy map (`bpf/lib/policy.h`): a longest-prefix trie per node, shared by all endpoints.

The fixed part (policy id, identity, direction) comes first, so that (protocol, port) can be cut short: no protocol
means L3 only, no port means every port of the protocol, some port bits mean an aligned range. Two look-ups answer
a packet, one for its peer and one for identity 0 (any peer); the higher precedence wins, then the longer prefix,
then the one that names the peer (policy-semantics 7.1).
"""

from __future__ import annotations

import ctypes
from enum import IntFlag

from services.agent.abi.layout import Struct, be16

FIXED_BITS = 72
PROTOCOL_BITS = 8


class PolicyKey(Struct):
    """`struct policy_key`, 16 bytes. `port` is in network order; for ICMP it is the type."""

    _fields_ = [
        ("prefixlen", ctypes.c_uint32),
        ("policy_id", ctypes.c_uint32),
        ("identity", ctypes.c_uint32),
        ("direction", ctypes.c_uint8),
        ("protocol", ctypes.c_uint8),
        ("port", ctypes.c_uint16),
    ]

    @classmethod
    def of(
        cls, policy_id: int, direction: int, identity: int, protocol: int = 0, port: int = 0, port_bits: int = 16
    ) -> PolicyKey:
        """Build a key: protocol 0 = L3 only; port 0 = every port; `port_bits` < 16 = an aligned range from `port`."""
        bits = FIXED_BITS
        if protocol:
            bits += PROTOCOL_BITS + (port_bits if port else 0)
            if not port and port_bits < 16:
                bits += port_bits
        return cls(
            prefixlen=bits,
            policy_id=policy_id,
            identity=identity,
            direction=direction,
            protocol=protocol,
            port=be16(port),
        )

    @property
    def port_bits(self) -> int:
        """Significant port bits, 0..16."""
        return max(0, int(self.prefixlen) - FIXED_BITS - PROTOCOL_BITS)


class PolicyFlags(IntFlag):
    """`POLICY_F_*`."""

    DENY = 1
    FULL = 2
    """With `DENY`: stands for a whole policy that the map has no room for."""


PRECEDENCE_DENY = 255


class PolicyEntry(Struct):
    """`struct policy_entry`, 16 bytes. `l7_ruleset` 0 = no L7 rules; `rule_id` 0 = no rule (enforcement is off)."""

    _fields_ = [
        ("precedence", ctypes.c_uint32),
        ("rule_id", ctypes.c_uint32),
        ("l7_ruleset", ctypes.c_uint32),
        ("flags", ctypes.c_uint8),
        ("prefix_bits", ctypes.c_uint8),
        ("pad", ctypes.c_uint16),
    ]
