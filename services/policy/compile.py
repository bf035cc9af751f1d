"""Compiles rules into the slots of a longest-prefix trie per peer, so that two look-ups give the declarative verdict.

The kernel asks twice for a packet, once for its peer and once for "any peer", takes the higher precedence, then the
longer prefix, then the peer's own entry (policy-semantics 7.1). Here, for one endpoint and one direction:

- the **any-peer trie** holds exactly what the rules without a peer say;
- a **peer's trie** holds what all rules that match the peer say together, wherever that differs from the any-peer trie.
  Its entries outrank those of the any-peer trie, except denies, which nothing outranks.

Since each trie is an exact function of (protocol, port), no entry ever needs to be weighed against another of its own
trie, and adding a rule can never be undone by prefix lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from services.model.verdict import Protocol
from services.policy.l7 import L7
from services.policy.rules import LAST_PORT, Traffic, merged_l7

NO_RULE = 0
"""The rule id of what holds where no rule has a say."""
PRECEDENCE_DENY = 255
PRECEDENCE_PEER = 3
PRECEDENCE_ANY_L7 = 2
PRECEDENCE_ANY = 1


class Effect(IntEnum):
    """What an entry does."""

    ALLOW = 0
    DENY = 1
    REFUSE = 2
    """Allowed on a condition that cannot be enforced here, so not let through; another rule may still allow it."""


@dataclass(frozen=True, slots=True)
class Value:
    """What happens to a packet, and the rule that says so."""

    effect: Effect
    rule_id: int
    l7: L7 | None = None

    def same(self, other: Value | None) -> bool:
        """Whether packets meet the same fate, whichever rule decides."""
        return other is not None and self.effect == other.effect and self.l7 == other.l7


@dataclass(frozen=True, slots=True)
class Piece:
    """One traffic item of one rule, ready to compile: names are resolved, conditions are known to be enforceable."""

    rule_id: int
    traffic: Traffic
    deny: bool = False
    refuse: bool = False
    """The rule has a condition that the datapath cannot enforce."""
    authentication: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """One trie entry. `bits` of `port` are significant; protocol 0 means every protocol."""

    protocol: int
    port: int
    bits: int
    value: Value

    @property
    def prefix_bits(self) -> int:
        """Length of the (protocol, port) prefix: 0, 8, or 8 + port bits."""
        return 8 + self.bits if self.protocol else 0


Template = tuple[Slot, ...]
"""The entries of one peer, to be written for every identity that the same rules match."""

Segment = tuple[int, int, "Value | None"]


@dataclass(frozen=True, slots=True)
class Function:
    """A verdict for every (protocol, port): `root` for protocols without an own part."""

    root: Value | None
    bases: dict[int, Value | None]
    """Per protocol: what holds where no port range says otherwise."""
    segments: dict[int, list[Segment]]
    """Per protocol: all ports, in order, without gaps."""

    def base(self, protocol: int) -> Value | None:
        return self.bases.get(protocol, self.root)

    def ports(self, protocol: int) -> list[Segment]:
        return self.segments.get(protocol) or [(0, LAST_PORT, self.root)]


NOTHING = Function(None, {}, {})


def function_of(pieces: Iterable[Piece]) -> Function:
    """What the pieces say together. Their order must be fixed: it decides which of equally broad rules is named."""
    ordered = sorted(pieces, key=lambda piece: piece.traffic.breadth)
    anything = [piece for piece in ordered if piece.traffic.protocol == Protocol.ANY]
    root = decide(anything)
    bases: dict[int, Value | None] = {}
    segments: dict[int, list[Segment]] = {}
    for protocol in sorted({piece.traffic.protocol for piece in ordered} - {Protocol.ANY}):
        own = [piece for piece in ordered if piece.traffic.protocol in (Protocol.ANY, protocol)]
        whole = [piece for piece in own if piece.traffic.breadth <= 1]
        bases[protocol] = decide(whole)
        segments[protocol] = list(_sweep(own, whole, bases[protocol]))
    return Function(root, bases, segments)


def _sweep(own: Sequence[Piece], whole: Sequence[Piece], base: Value | None) -> Iterator[Segment]:
    """The ports cut at every range's ends, neighbours with one value joined."""
    ranges = own[len(whole) :]
    cuts = sorted(
        {0, *(p.traffic.low for p in ranges), *(p.traffic.high + 1 for p in ranges if p.traffic.high < LAST_PORT)}
    )
    starting = sorted(range(len(ranges)), key=lambda index: ranges[index].traffic.low)
    active: list[int] = []
    position = 0
    start, current = 0, base
    for cut in cuts:
        active = [index for index in active if ranges[index].traffic.high >= cut]
        while position < len(starting) and ranges[starting[position]].traffic.low <= cut:
            active.append(starting[position])
            position += 1
        value = decide([*whole, *(ranges[index] for index in sorted(active))]) if active else base
        if value != current:
            if cut > start:
                yield start, cut - 1, current
            start, current = cut, value
    yield start, LAST_PORT, current


def decide(pieces: Sequence[Piece]) -> Value | None:
    """The verdict where all of these match, broadest first; None where none does (policy-semantics 3.2, 3.4)."""
    if not pieces:
        return None
    for piece in pieces:
        if piece.deny:
            return Value(Effect.DENY, piece.rule_id)
    modes = {piece.authentication for piece in pieces}
    if modes & {"required", "test-always-fail"} and "disabled" not in modes:
        guarded = next(p for p in pieces if p.authentication in {"required", "test-always-fail"})
        if guarded.refuse:
            return Value(Effect.REFUSE, guarded.rule_id)
    able = [piece for piece in pieces if not piece.refuse]
    if not able:
        return Value(Effect.REFUSE, pieces[0].rule_id)
    l7 = merged_l7((piece.traffic for piece in able), opened=any(piece.rule_id == NO_RULE for piece in able))
    plain = next((piece for piece in able if piece.traffic.l7 is None), able[0])
    asking = next((piece for piece in able if piece.traffic.l7 is not None), able[0])
    return Value(Effect.ALLOW, (plain if l7 is None else asking).rule_id, l7)


def slots(wanted: Function, any_peer: Function = NOTHING) -> Template:
    """The entries a peer needs so that, beside the any-peer entries, look-ups give `wanted`."""
    found: dict[tuple[int, int, int], Value] = {}
    cover: Value | None = None
    if wanted.root is not None and _needed(wanted.root, any_peer.root, None):
        cover = found[0, 0, 0] = wanted.root
    for protocol in sorted(wanted.bases.keys() | any_peer.bases.keys()):
        under = cover
        base = wanted.base(protocol)
        if base is not None and _needed(base, any_peer.base(protocol), cover):
            under = found[protocol, 0, 0] = base
        for low, high, value in _differing(wanted.ports(protocol), any_peer.ports(protocol), under):
            for port, bits in prefixes(low, high):
                found[protocol, port, bits] = value
    return tuple(Slot(*key, value) for key, value in found.items())


def _differing(wanted: list[Segment], any_peer: list[Segment], cover: Value | None) -> Iterator[tuple[int, int, Value]]:
    """Port ranges that need an entry of their own, neighbours with one value joined."""
    low, high, pending = 0, -1, None
    for start, end, value, beside in _overlay(wanted, any_peer):
        needed = value is not None and _needed(value, beside, cover)
        if needed and pending == value and high + 1 == start:
            high = end
            continue
        if pending is not None:
            yield low, high, pending
        pending = value if needed else None
        low, high = start, end
    if pending is not None:
        yield low, high, pending


def _needed(value: Value, any_peer: Value | None, cover: Value | None) -> bool:
    """Whether a look-up would not already give `value`: the any-peer trie, or a broader entry of the peer, may do."""
    if any_peer is not None and any_peer.effect == Effect.DENY:
        return False
    return not value.same(any_peer if cover is None else cover)


def _overlay(first: list[Segment], second: list[Segment]) -> Iterator[tuple[int, int, Value | None, Value | None]]:
    """Two partitions of the ports cut into one."""
    i = j = 0
    start = 0
    while start <= LAST_PORT:
        end = min(first[i][1], second[j][1])
        yield start, end, first[i][2], second[j][2]
        i += first[i][1] == end
        j += second[j][1] == end
        start = end + 1


def prefixes(low: int, high: int) -> Iterator[tuple[int, int]]:
    """The fewest aligned (port, significant bits) blocks that make up a range, exact at both ends."""
    while low <= high:
        size = (low & -low) or LAST_PORT + 1
        while low + size - 1 > high:
            size >>= 1
        yield low, 17 - size.bit_length()
        low += size


def precedence(value: Value, *, any_peer: bool) -> int:
    """The rank of an entry between the two look-ups."""
    if value.effect == Effect.DENY:
        return PRECEDENCE_DENY
    if not any_peer:
        return PRECEDENCE_PEER
    return PRECEDENCE_ANY_L7 if value.l7 is not None else PRECEDENCE_ANY


def lookup(peer: Template, any_peer: Template, protocol: int, port: int) -> Value | None:
    """What the kernel finds: a readable model of `bpf/lib/policy.h` for tests and for explaining."""
    mine, common = _longest(peer, protocol, port), _longest(any_peer, protocol, port)
    if mine is None or common is None:
        found = mine or common
        return found.value if found else None
    ranks = precedence(mine.value, any_peer=False), precedence(common.value, any_peer=True)
    if ranks[0] != ranks[1]:
        return mine.value if ranks[0] > ranks[1] else common.value
    return mine.value if mine.prefix_bits >= common.prefix_bits else common.value


def _longest(template: Template, protocol: int, port: int) -> Slot | None:
    fitting = [
        slot
        for slot in template
        if slot.protocol == 0 or (slot.protocol == protocol and (slot.port ^ port) >> (16 - slot.bits) == 0)
    ]
    return max(fitting, key=lambda slot: slot.prefix_bits, default=None)
