"""What other policies would change, for every pair of parties. Nothing is applied.

In: two worlds (before, after) and who there is. Out: flips. Exact: ports are cut wherever any rule of either world cuts
them, so that one question per segment speaks for all its ports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from services.model.addresses import IPNetwork
from services.model.verdict import Direction, Protocol
from services.policy.peers import Party
from services.policy.rules import LAST_PORT, Traffic
from services.policy.world import Answer, Question, Specs, World

MAX_QUESTIONS = 400_000
"""Bound of one simulation: a few seconds of one core."""
PORTED = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
TYPED = (Protocol.ICMP, Protocol.ICMPV6)
LAST_TYPE = 255
OTHER_PROTOCOL = 255
"""Stands for every protocol that no rule names."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who may connect: a group of equal pods, a node, or with `prefix` the outside."""

    names: tuple[str, ...]
    party: Party
    prefix: IPNetwork | None = None
    version: int = 0
    """Only its addresses of this IP version are meant; 0 = it is the same to policy by all of them."""

    @property
    def family(self) -> int:
        """The IP version that it can be met by, 0 = any."""
        return self.version if self.prefix is None else self.prefix.version

    def within(self, world: World) -> Party:
        """As a world's policies see it: which prefix an address belongs to depends on them."""
        return self.party if self.prefix is None else world.outside(self.prefix)


@dataclass(frozen=True, slots=True)
class Range:
    """Ports (of ICMP: types) of a protocol; `OTHER_PROTOCOL` is every one that no rule names."""

    protocol: int
    low: int
    high: int

    def __str__(self) -> str:
        if self.protocol == OTHER_PROTOCOL:
            return "other protocols"
        last = LAST_TYPE if self.protocol in TYPED else LAST_PORT
        return str(Traffic(self.protocol, self.low, LAST_PORT if self.high == last else self.high))


@dataclass(frozen=True, slots=True)
class Flip:
    """What one party could do to another before, and could after."""

    source: Actor
    destination: Actor
    ports: Range
    before: Answer
    after: Answer


@dataclass(slots=True)
class Simulation:
    """The flips; `complete` is False where the bound was met and pairs were left out."""

    flips: list[Flip] = field(default_factory=list)
    questions: int = 0
    complete: bool = True


def simulate(before: World, after: World, actors: Sequence[Actor], limit: int = MAX_QUESTIONS) -> Simulation:
    """Compare two worlds for every ordered pair of different actors, and for pods of one group among themselves."""
    found = Simulation()
    moved = {
        (place, direction)
        for place, actor in enumerate(actors)
        for direction in Direction
        if _relevant(before.specs(actor.party), direction) != _relevant(after.specs(actor.party), direction)
    }
    outside_moved = before.prefixes != after.prefixes
    for source_place, source in enumerate(actors):
        for place, destination in enumerate(actors):
            if source.prefix is not None and destination.prefix is not None:
                continue
            if source.family and destination.family and source.family != destination.family:
                continue
            touched = (source_place, Direction.EGRESS) in moved or (place, Direction.INGRESS) in moved
            if not touched and not (outside_moved and (source.prefix or destination.prefix)):
                continue
            ranges = list(segments(before, after, source.party, destination.party))
            found.questions += 2 * len(ranges)
            if found.questions > limit:
                found.complete = False
                return found
            found.flips += _compare(before, after, source, destination, ranges)
    return found


def whole(world: World, question: Question) -> Answer:
    """Both directions together: the stricter one; both must pass."""
    egress = world.answer(question, Direction.EGRESS)
    ingress = world.answer(question, Direction.INGRESS)
    if not egress.passes:
        return egress
    return ingress if not ingress.passes or ingress.requests else egress


def _compare(before: World, after: World, source: Actor, destination: Actor, ranges: Iterable[Range]) -> Iterator[Flip]:
    pending: Flip | None = None
    for ports in ranges:
        answers = [
            whole(world, Question(source.within(world), destination.within(world), ports.protocol, ports.low))
            for world in (before, after)
        ]
        if answers[0] == answers[1]:
            continue
        if (
            pending is not None
            and (pending.before, pending.after) == (answers[0], answers[1])
            and (pending.ports.protocol, pending.ports.high + 1) == (ports.protocol, ports.low)
        ):
            ports = Range(ports.protocol, pending.ports.low, ports.high)  # noqa: PLW2901
        elif pending is not None:
            yield pending
        pending = Flip(source, destination, ports, answers[0], answers[1])
    if pending is not None:
        yield pending


def segments(before: World, after: World, source: Party, destination: Party) -> Iterator[Range]:
    """Ranges within which no rule that may apply distinguishes ports."""
    traffic = {
        item
        for world in (before, after)
        for party, direction in ((source, Direction.EGRESS), (destination, Direction.INGRESS))
        for _, spec in world.specs(party)
        for rule in spec.rules
        if rule.direction == direction
        for item in rule.traffic
    }
    named = {item.protocol for item in traffic} - {Protocol.ANY}
    for protocol in (*PORTED, *TYPED, *sorted(named - {*PORTED, *TYPED})):
        last = LAST_TYPE if protocol in TYPED else LAST_PORT
        cuts = {0}
        for item in traffic:
            if item.protocol == protocol:
                for low, high in _numbers(item, destination):
                    cuts |= {low, high + 1}
        edges = sorted(cut for cut in cuts if cut <= last)
        for low, following in zip(edges, [*edges[1:], last + 1], strict=True):
            yield Range(protocol, low, following - 1)
    yield Range(OTHER_PROTOCOL, 0, LAST_PORT)


def _numbers(item: Traffic, destination: Party) -> list[tuple[int, int]]:
    if item.name:
        return [(number, number) for number in destination.ports.get((item.name, item.protocol), ())]
    return [(item.low, item.high)]


def _relevant(specs: Specs, direction: Direction) -> list[object]:
    """What of the specs has a say in a direction; who wrote it makes no difference."""
    return [
        (direction in spec.default_deny, [rule for rule in spec.rules if rule.direction == direction])
        for _, spec in specs
        if spec.touches(direction)
    ]


def actors_outside(*worlds: World) -> list[IPNetwork]:
    """The prefixes that any of the worlds' policies tell apart."""
    found = {prefix for world in worlds for prefix in world.prefixes}
    return sorted(found, key=lambda prefix: (prefix.version, int(prefix.network_address), prefix.prefixlen))
