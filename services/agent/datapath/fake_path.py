"""What becomes of a packet from outside whose way to the backend is narrow, in Python: the specification that the
compiled programs are compared with (`bpf/forward.c`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

LEAST = {4: 0, 6: 1280}
"""What every link takes (RFC 8200, 5): no sender makes smaller packets. IPv4's 68 bytes are never met."""
DSR_OPTION = {4: 8, 6: 24}
"""Bytes that tell the backend's node what the client addressed."""


class Fate(Enum):
    """Of a packet."""

    SENT = "sent as it is"
    CUT = "left to the node's stack, which cuts it"
    TOLD = "dropped, and the sender learns what would fit"
    LOST = "dropped"


@dataclass(frozen=True, slots=True)
class Way:
    """From the node to the backend. Sizes in bytes, network headers included."""

    mtu: int
    """Of the path: the node's own device, or less if the routing table knows of less."""
    overlay: int = 0
    """IP version of the packets between the nodes; 0: pods' packets travel as they are."""

    @property
    def room(self) -> int:
        """The largest packet of a pod that nobody cuts on the way."""
        return self.mtu - {0: 0, 4: 50, 6: 70}[self.overlay]


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet of a client."""

    version: int
    size: int
    """Or that of each of its segments, where several were put together."""
    may_be_cut: bool = False
    """IPv4 without "do not fragment"."""
    direct: bool = False
    """It carries the client's address for the backend's node (DSR)."""
    unanswerable: bool = False
    """An ICMP error, a fragment that is not the first, sent to many (RFC 1122, 3.2.2)."""


def fate(packet: Sent, way: Way) -> tuple[Fate, int]:
    """What becomes of it; with TOLD, the size that the sender is told."""
    option = DSR_OPTION[packet.version] if packet.direct else 0
    if packet.size + option <= way.room:
        return Fate.SENT, 0
    if packet.may_be_cut and way.overlay == 4:
        return Fate.SENT, 0
    if packet.may_be_cut and way.overlay == 0:
        return Fate.CUT, 0
    fits = max(way.room - option, LEAST[packet.version])
    if packet.size > fits:
        return (Fate.LOST, 0) if packet.unanswerable else (Fate.TOLD, fits)
    # Too small to be told: without the option, or cut with the overlay's headers around it.
    return (Fate.SENT if packet.size <= way.room or way.overlay == 4 else Fate.LOST), 0
