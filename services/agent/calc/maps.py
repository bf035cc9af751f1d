"""What calc asks the datapath to do: changes of named maps, as bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from services.agent.abi.ipcache import IpcacheKey, RemoteEndpointInfo, RemoteFlags
from services.agent.abi.layout import be16
from services.agent.abi.policy import FIXED_BITS, PolicyFlags
from services.agent.abi.refined import RefinedKey
from services.agent.calc.catalogue import FULL_RULE
from services.agent.calc.names import FqdnAutomaton
from services.model.addresses import IPAddress, IPNetwork, prefix_to_key, to_bytes
from services.policy.compile import Effect, Slot, precedence
from services.policy.l7 import HttpRule

MapName = Literal[
    "policy",
    "ipcache",
    "refined",
    "endpoints",
    "endpoint_addrs",
    "endpoint_ifs",
    "services",
    "backends",
    "backend_slots",
    "maglev",
    "source_ranges",
    "revnat",
    "egress_gateway",
    "bandwidth",
    "http_visible_pods",
]
MAP_NAMES: tuple[MapName, ...] = get_args(MapName)


@dataclass(frozen=True, slots=True)
class Put:
    """The map has this value under this key."""

    map: MapName
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Remove:
    """The map has nothing under this key."""

    map: MapName
    key: bytes


@dataclass(frozen=True, slots=True)
class HttpRulesets:
    """All HTTP rule sets that policy entries may name, by id (1..1022): replaces what was there."""

    rulesets: Mapping[int, tuple[HttpRule, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class NameRules:
    """All patterns of names: replaces what was there. `rulesets`: number (1..1023) -> patterns; `identities`: set of
    toFQDNs selectors -> its identity."""

    rulesets: Mapping[int, frozenset[str]]
    fqdn: FqdnAutomaton
    identities: Mapping[frozenset[str], int]


@dataclass(frozen=True, slots=True, eq=False)
class NamesMoved:
    """Names that are known already shall have the identities that go with these rules."""

    rules: NameRules


Change = Put | Remove | HttpRulesets | NameRules | NamesMoved

# Hundreds of thousands of policy entries are written at a start; these are `abi.policy`'s structs without a ctypes
# object for each (a test holds the two together).
_POLICY_KEY = struct.Struct("<IIIBBH")
_POLICY_ENTRY = struct.Struct("<IIIBBH")


def policy_key(policy_id: int, direction: int, identity: int, slot: Slot) -> bytes:
    """The key of one slot of a peer's trie; identity 0 is the any-peer trie."""
    return _POLICY_KEY.pack(
        FIXED_BITS + slot.prefix_bits, policy_id, identity, direction, slot.protocol, be16(slot.port)
    )


def policy_entry(slot: Slot, ruleset: int, *, any_peer: bool) -> bytes:
    """The value of one slot. Traffic that needs a rule set and has none (`ruleset` 0) is refused."""
    allowed = slot.value.effect == Effect.ALLOW and (slot.value.l7 is None or ruleset)
    flags = 0 if allowed else PolicyFlags.DENY
    if slot.value.rule_id == FULL_RULE:
        flags |= PolicyFlags.FULL
    rank = precedence(slot.value, any_peer=any_peer)
    return _POLICY_ENTRY.pack(rank, slot.value.rule_id, ruleset, flags, slot.prefix_bits, 0)


def ipcache_key(prefix: IPNetwork) -> bytes:
    """The key of a prefix."""
    length, raw = prefix_to_key(prefix)
    return IpcacheKey(prefixlen=length, address=raw).pack()


@lru_cache(8192)
def ipcache_value(identity: int, node: IPAddress | None, *, routed: bool = False) -> bytes:
    """Who has a prefix, and behind which node; `routed`: not by the overlay. Pods of one workload on a node
    share it."""
    return RemoteEndpointInfo(
        identity=identity,
        tunnel_endpoint=to_bytes(node) if node else bytes(16),
        flags=RemoteFlags.ROUTED if node and routed else 0,
    ).pack()


def refined_key(address: IPAddress, identity: int) -> bytes:
    """The key of an address of an identity; the value is what policy knows it by."""
    return RefinedKey(address=to_bytes(address), identity=identity).pack()


def u32(number: int) -> bytes:
    """A bare 32-bit key or value."""
    return struct.pack("<I", number)
