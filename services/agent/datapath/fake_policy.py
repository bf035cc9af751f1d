"""Policy's verdict by a plain scan of the policy map (policy-semantics 7.1): the oracle of `bpf/lib/policy.h`."""

from __future__ import annotations

from collections.abc import Mapping

from services.agent.abi.layout import be16
from services.agent.abi.policy import FIXED_BITS, PRECEDENCE_DENY, PolicyEntry, PolicyFlags, PolicyKey
from services.model.verdict import DropReason

PolicyMap = Mapping[bytes, bytes]


def decide(
    entries: PolicyMap, policy_id: int, direction: int, identity: int, protocol: int, port: int
) -> tuple[int, DropReason | None]:
    """(rule id, why not). Higher precedence, then the longer (protocol, port), then the entry that names the peer; at
    once that one, where its precedence is the highest there is."""
    best: tuple[tuple[int, int, bool], PolicyEntry] | None = None
    for named in (True, False) if identity else (False,):
        entry = _longest(entries, policy_id, identity if named else 0, direction, protocol, port)
        if entry is None:
            continue
        rank = int(entry.precedence), int(entry.prefix_bits), named
        if best is None or rank > best[0]:
            best = rank, entry
        if named and entry.precedence >= PRECEDENCE_DENY:
            break
    if best is None:
        return 0, DropReason.POLICY_DENIED
    entry = best[1]
    if not entry.flags & PolicyFlags.DENY:
        return int(entry.rule_id), None
    full = entry.flags & PolicyFlags.FULL
    return int(entry.rule_id), DropReason.POLICY_MAP_FULL if full else DropReason.POLICY_DENY


def _longest(
    entries: PolicyMap, policy_id: int, identity: int, direction: int, protocol: int, port: int
) -> PolicyEntry | None:
    found: tuple[int, PolicyEntry] | None = None
    for raw, value in entries.items():
        key = PolicyKey.unpack(raw)
        bits = int(key.prefixlen) - FIXED_BITS
        if (key.policy_id, key.identity, key.direction) != (policy_id, identity, direction):
            continue
        if bits >= 8 and key.protocol != protocol:
            continue
        mask = (0xFFFF << (24 - bits)) & 0xFFFF if bits > 8 else 0
        if be16(key.port) & mask != port & mask:
            continue
        if found is None or bits > found[0]:
            found = bits, PolicyEntry.unpack(value)
    return found[1] if found else None
