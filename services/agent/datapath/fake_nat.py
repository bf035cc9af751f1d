"""Masquerading and its ports in Python: the specification that the compiled programs are compared with.

Follows bpf/nat.c and bpf/lib/snat.h for what opens and answers connections; lifetimes, errors and fragments are left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class Tuple5:
    """A packet, as translation sees it. Addresses and ports of the wire."""

    source: str
    destination: str
    sport: int
    dport: int
    protocol: int

    @property
    def reverse(self) -> Tuple5:
        """The answer's."""
        return Tuple5(self.destination, self.source, self.dport, self.sport, self.protocol)


class Outcome(Enum):
    """What happens to a packet without a translation."""

    AS_IT_IS = "as it is"
    DROPPED = "no port is free"


@dataclass(slots=True)
class Translator:
    """A node's table. `pods`: addresses of its pods; `inside`: whether an address sees pods' own."""

    own: str
    ports: range
    pods: Collection[str]
    inside: Callable[[str], bool]
    made: dict[Tuple5, Tuple5] = field(default_factory=dict)
    """Original -> what it becomes."""
    answers: dict[Tuple5, Tuple5] = field(default_factory=dict)

    def leaving(self, packet: Tuple5) -> Outcome | list[Tuple5]:
        """What a packet may become on its way out: one that is known, or the sender's own port if it is free, or any
        that is. Tell `learn` which one it was."""
        if packet in self.made:
            return [self.made[packet]]
        if packet.source == self.own:
            if packet.sport not in self.ports:
                return Outcome.AS_IT_IS
        elif packet.source not in self.pods or self.inside(packet.destination):
            return Outcome.AS_IT_IS
        free = [made for port in self.ports if (made := self._with(packet, port)).reverse not in self.answers]
        same = self._with(packet, packet.sport)
        if same in free:
            return [same]
        return free or Outcome.DROPPED

    def learn(self, packet: Tuple5, became: Tuple5) -> None:
        """It has become this, and will again."""
        self.made[packet] = became
        self.answers[became.reverse] = packet.reverse

    def arriving(self, packet: Tuple5) -> Tuple5:
        """What a packet from outside becomes."""
        return self.answers.get(packet, packet)

    def _with(self, packet: Tuple5, port: int) -> Tuple5:
        return Tuple5(self.own, packet.destination, port, packet.dport, packet.protocol)
