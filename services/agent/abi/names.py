"""Names of hosts (`bpf/lib/names.h`, `fqdn.h`, `l7.h`): the automata that they are matched with, what was learned.

The agent writes `name_tables` (two generations) and `names_config`; the kernel writes `fqdn_names` and `fqdn_ips` as
answers pass. Of `fqdn_names` the agent changes the identity of a name, nothing else, and of `fqdn_ips` nothing.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

from services.agent.abi.layout import Struct

NAME_BYTES = 256
MAX_RULESETS = 1024
"""Number 0 is the start of the toFQDNs selectors, 1 and up are rule sets."""
MAX_STATES = 16384
COLUMNS = 64
ACCEPT = 0x8000
"""Bit of a next state: the name read so far is allowed if it ends here."""
DEAD, EVERYTHING, FIRST_STATE = 0, 1, 2
GENERATIONS = 2
TABLE_SIZE = 2 * MAX_RULESETS + 4 * MAX_STATES + 256 + 2 * MAX_STATES * COLUMNS

LETTERS = "-.0123456789_abcdefghijklmnopqrstuvwxyz"
"""Column n + 1 of the automata; column 0 is every other byte."""
DOT_COLUMN = 1 + LETTERS.index(".")


class L7Kind(IntEnum):
    """`enum l7_kind`: the high half of a rule set's number in policy entries."""

    HTTP = 0
    DNS = 1
    TLS = 2

    def ruleset(self, number: int) -> int:
        """The number as entries carry it."""
        return self << 16 | number


class NamesConfig(Struct):
    """`struct names_config`, 32 bytes. `generation` 0: nothing was written yet."""

    _fields_ = [
        ("generation", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("min_ttl_ns", ctypes.c_uint64),
        ("grace_ns", ctypes.c_uint64),
    ]


FQDN_SLOTS = 8
CONCERNS = 1 << 63
"""In an expiry: some selector matched when it was learned."""


class FqdnSlot(Struct):
    """`struct fqdn_slot`: a name (by hash; 0: free) and when it ends, CLOCK_MONOTONIC."""

    _fields_ = [("name", ctypes.c_uint64), ("expires_ns", ctypes.c_uint64)]


class FqdnIp(Struct):
    """`struct fqdn_ip`, 128 bytes, keyed by 16 bytes of address."""

    _fields_ = [("slots", FqdnSlot * FQDN_SLOTS)]


class FqdnName(Struct):
    """`struct fqdn_name`, 288 bytes, keyed by the name's hash."""

    _fields_ = [
        ("learned_ns", ctypes.c_uint64),
        ("expires_ns", ctypes.c_uint64),
        ("identity", ctypes.c_uint32),
        ("ttl", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("name", ctypes.c_uint8 * NAME_BYTES),
    ]


class DnsAskedKey(Struct):
    """`struct dns_asked_key`, 48 bytes: a question, by its connection's conntrack key and id."""

    _fields_ = [
        ("connection", ctypes.c_uint8 * 40),
        ("id", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("pad2", ctypes.c_uint32),
    ]


class DnsAsked(Struct):
    """`struct dns_asked`, 24 bytes."""

    _fields_ = [
        ("name", ctypes.c_uint64),
        ("asked_ns", ctypes.c_uint64),
        ("qtype", ctypes.c_uint16),
        ("qclass", ctypes.c_uint16),
        ("pad", ctypes.c_uint32),
    ]


assert ctypes.sizeof(NamesConfig) == 32
assert ctypes.sizeof(FqdnIp) == 128
assert ctypes.sizeof(FqdnName) == 288
assert ctypes.sizeof(DnsAskedKey) == 48

_MASK = (1 << 64) - 1


def name_hash(name: bytes, seed: int) -> int:
    """`name_hash()` of the kernel, for a canonical name: lower case, with a final dot."""
    padded = name.ljust(NAME_BYTES, b"\0")
    value = seed ^ len(name)
    for at in range(0, len(name), 8):
        value ^= int.from_bytes(padded[at : at + 8], "little")
        value = value * 0x9FB21C651E98DF25 & _MASK
        value ^= value >> 32
    value = value * 0xD6E8FEB86659FD93 & _MASK
    value ^= value >> 29
    return value or 1
